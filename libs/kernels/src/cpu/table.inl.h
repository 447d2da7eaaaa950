// The table of one path, from the ops included before. The including file names its bf16 and q8
// GEMM.
#pragma once

namespace conclave::kernels {
namespace {

constexpr KernelTable MakeTable(void (*matmul_bf16)(const PanelJob& job),
                                void (*matmul_q8)(const Q8PanelJob& job)) {
  KernelTable table = {};
  table.matmul_f32 = MatMulF32;
  table.matmul_bf16 = matmul_bf16;
  table.matmul_q8 = matmul_q8;
  table.quantize_f32 = QuantizeF32Row;
  table.quantize_bf16 = QuantizeBf16Row;
  table.layer_norm = LayerNormRow;
  table.rms_norm = RmsNormRow;
  table.softmax = SoftmaxRow;
  table.round_to_bf16 = RoundRow;
  table.widen_bf16 = WidenRow;
  table.add_scaled = AddScaledRow;
  table.add_term = AddTermRow;
  table.activate[0] = ActivateRow<Silu>;
  table.activate[1] = ActivateRow<GeluTanh>;
  table.activate[2] = ActivateRow<GeluErf>;
  table.activate[3] = ActivateRow<QuickGelu>;
  table.gated_activate[0] = GatedActivateRow<Silu>;
  table.gated_activate[1] = GatedActivateRow<GeluTanh>;
  table.gated_activate[2] = GatedActivateRow<GeluErf>;
  table.gated_activate[3] = GatedActivateRow<QuickGelu>;
  table.rotate_half_split = RotateRow;
  table.dot_rows = DotRowsOfOne;
  table.attend = Attend;
  table.attend_items = kAttendItems;
  return table;
}

}  // namespace
}  // namespace conclave::kernels
