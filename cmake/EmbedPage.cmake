# Writes OUTPUT, a C++ file that defines conclave::cli::PageFiles() with the files of ROOT; run by `cmake -P`.
# The files are few and small: their bytes stand in the source as numbers.
file(GLOB files RELATIVE ${ROOT} ${ROOT}/index.html ${ROOT}/app/*)
list(SORT files)
set(types_html "text/html; charset=utf-8")
set(types_js "text/javascript; charset=utf-8")
set(types_css "text/css; charset=utf-8")
set(types_svg "image/svg+xml")
set(arrays "")
set(table "")
set(index 0)
foreach(file IN LISTS files)
  get_filename_component(extension ${file} LAST_EXT)
  string(SUBSTRING "${extension}" 1 -1 extension)
  if(NOT DEFINED types_${extension})
    message(FATAL_ERROR "${file}: expected .html, .js, .css or .svg")
  endif()
  file(READ ${ROOT}/${file} hex HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(APPEND arrays "constexpr unsigned char kFile${index}[] = {${bytes}};\n")
  string(APPEND table "    {\"/${file}\", \"${types_${extension}}\", View(kFile${index})},\n")
  math(EXPR index "${index} + 1")
endforeach()
file(WRITE ${OUTPUT}.new "#include \"page_files.h\"

namespace conclave::cli {
namespace {

template <size_t kSize>
std::string_view View(const unsigned char (&bytes)[kSize]) {
  return {reinterpret_cast<const char*>(bytes), kSize};
}

${arrays}
const PageFile kFiles[] = {
${table}};

}  // namespace

std::span<const PageFile> PageFiles() { return kFiles; }

}  // namespace conclave::cli
")
file(RENAME ${OUTPUT}.new ${OUTPUT})
