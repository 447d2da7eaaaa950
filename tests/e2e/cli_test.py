"""Goal: the commands keep the contract that scripts rely on: results on stdout, one line of error on stderr, exit codes.

Method: runs the binary as a process, with flags, variables and files, right and wrong.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import conclave_process as conclave
from conclave_process import run

IMAGE = str(conclave.SAMPLES / "four-large.jpg")
QUESTION = "What is in the image?"
ANSWER = ("I see an orange star at the top left, a red square at the left, a yellow circle at the center and a blue "
          "circle at the bottom right.")
COMMANDS = ("serve", "router", "cluster", "top", "plan", "ask", "inspect", "bench", "doctor", "synth")


class AskTest(conclave.TestCase):
    def test_the_answer_is_all_that_stdout_gets(self):
        result = run("ask", "-m", str(conclave.MODEL), IMAGE, QUESTION)
        self.assertEqual(result.returncode, 0, result)
        self.assertEqual(result.stdout, ANSWER + "\n")

    def test_the_demo_is_the_default_from_any_folder(self):
        with tempfile.TemporaryDirectory() as elsewhere:
            result = run("ask", IMAGE, QUESTION, cwd=elsewhere, env={"CONCLAVE_HOME": str(conclave.ROOT)})
        self.assertEqual((result.returncode, result.stdout), (0, ANSWER + "\n"), result)

    def test_a_running_server_is_asked_with_url(self):
        with conclave.Server() as server:
            result = run("ask", "--url", server.api, IMAGE, QUESTION)
        self.assertEqual((result.returncode, result.stdout), (0, ANSWER + "\n"), result)

    def test_images_by_flag_and_text_alone(self):
        result = run("ask", "-m", str(conclave.MODEL), "--image", IMAGE, QUESTION)
        self.assertEqual((result.returncode, result.stdout), (0, ANSWER + "\n"), result)
        sample = next(sample for sample in conclave.samples() if not sample["image"] and not sample["history"])
        result = run("ask", "-m", str(conclave.MODEL), sample["question"])
        self.assertEqual((result.returncode, result.stdout), (0, sample["answer"] + "\n"), result)

    def test_every_dtype(self):
        for dtype in ("f32", "bf16", "q8"):
            result = run("ask", "-m", str(conclave.MODEL), "--dtype", dtype, IMAGE, QUESTION)
            self.assertEqual((result.returncode, result.stdout), (0, ANSWER + "\n"), (dtype, result))

    def test_serve_in_q8_says_so(self):
        for args in ((), ("--spawn", "2", "--threads", "1")):
            with conclave.Server("--dtype", "q8", *args) as server:
                response = server.chat({"model": "demo", "messages": [conclave.user(QUESTION, "four-large.jpg")]})
                self.assertEqual(response.content, ANSWER, response)
                self.assertRegex(response.json()["system_fingerprint"], r"^[0-9a-f]{12}-q8-")
                page = conclave.http_request(server.ready["admin"], "GET", "/metrics").body.decode()
                self.assertRegex(page, r'conclave_build_info\{[^}]*dtype="q8"')

    def test_every_isa_of_this_machine_answers_the_same(self):
        answered = 0
        for isa in ("scalar", "avx2", "avx512", "avx512-bf16"):
            result = run("ask", "-m", str(conclave.MODEL), "--isa", isa, IMAGE, QUESTION, timeout=120)
            if result.returncode != 0:
                self.assertRegex(result.stderr, isa)
                self.assertEqual(result.returncode, 2, result)
                continue
            self.assertEqual(result.stdout, ANSWER + "\n", isa)
            answered += 1
        self.assertGreaterEqual(answered, 1)

    def test_a_bad_image_is_an_error_with_its_name(self):
        for content in (b"", b"not a picture", pathlib.Path(IMAGE).read_bytes()[:500]):
            with self.subTest(content=content[:10]), tempfile.NamedTemporaryFile(suffix=".jpg") as file:
                file.write(content)
                file.flush()
                result = run("ask", "-m", str(conclave.MODEL), file.name, QUESTION)
                self.assertNotEqual(result.returncode, 0)
                self.assertEqual(result.stdout, "")
                self.assertRegex(result.stderr.splitlines()[-1], r"^error: ")
        result = run("ask", "-m", str(conclave.MODEL), "/nowhere/a.png", QUESTION)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("/nowhere/a.png", result.stderr)

    def test_an_unreachable_server(self):
        result = run("ask", "--url", "http://127.0.0.1:9", IMAGE, QUESTION)
        self.assertEqual(result.returncode, 5, result)
        self.assertRegex(result.stderr, r"^error: ")


class InspectTest(conclave.TestCase):
    def test_json(self):
        result = run("inspect", str(conclave.MODEL), "--json")
        self.assertEqual(result.returncode, 0, result)
        report = json.loads(result.stdout)
        self.assertEqual(report["parameters"]["total"], 2_181_440)
        # Of the language model, as the paper counts: two of four experts in both MoE layers, without tower and projector.
        self.assertEqual(report["parameters"]["activated"], 1_168_128)
        self.assertEqual(report["moe"]["layers"], [0, 2])
        self.assertEqual(report["moe"]["experts"], [4, 4])
        self.assertEqual(report["moe"]["top_k"], 2)
        self.assertEqual(report["image"]["patches"], 36)
        for key in ("model_type", "bytes", "kv_bytes_per_token", "tokenizer", "template", "warnings"):
            self.assertIn(key, report)

    def test_text(self):
        result = run("inspect", str(conclave.MODEL))
        self.assertEqual(result.returncode, 0, result)
        self.assertIn("moe_llava_stablelm", result.stdout)

    def test_a_folder_without_weights_is_told_from_its_config(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "config.json").write_bytes((conclave.MODEL / "config.json").read_bytes())
            result = run("inspect", folder, "--json")
        self.assertEqual(result.returncode, 0, result)
        report = json.loads(result.stdout)
        self.assertEqual(report["weights"], "absent")
        self.assertEqual(report["parameters"]["total"], 2_181_440)

    def test_nothing_there(self):
        result = run("inspect", "/nowhere")
        self.assertEqual(result.returncode, 4, result)
        self.assertIn("/nowhere", result.stderr)


class DoctorTest(conclave.TestCase):
    def test_json_and_text(self):
        report = json.loads(run("doctor", "--json").stdout)
        self.assertIsInstance(report, dict)
        self.assertTrue(report)
        text = run("doctor")
        self.assertEqual(text.returncode, 0, text)
        self.assertRegex(text.stdout, "scalar|avx")


class SynthTest(conclave.TestCase):
    def test_tiny_is_a_model_that_serves(self):
        with tempfile.TemporaryDirectory() as parent:
            folder = pathlib.Path(parent, "tiny")
            result = run("synth", "--like", "tiny", str(folder))
            self.assertEqual(result.returncode, 0, result)
            report = json.loads(run("inspect", str(folder), "--json").stdout)
            self.assertGreaterEqual(len(report["moe"]["layers"]), 4)
            asked = run("ask", "-m", str(folder), IMAGE, "Anything?", timeout=120)
            self.assertEqual(asked.returncode, 0, asked)

    def test_a_seed_makes_the_same_bytes(self):
        with tempfile.TemporaryDirectory() as parent:
            for name in ("a", "b"):
                self.assertEqual(run("synth", "--like", "tiny", str(pathlib.Path(parent, name))).returncode, 0)
            self.assertEqual(*(b"".join(file.read_bytes() for file in sorted(pathlib.Path(parent, name).rglob("*"))
                                        if file.is_file()) for name in ("a", "b")))

    def test_wrong_names(self):
        with tempfile.TemporaryDirectory() as parent:
            result = run("synth", "--like", "gpt-9", str(pathlib.Path(parent, "x")))
            self.assertEqual(result.returncode, 2, result)
            self.assertIn("gpt-9", result.stderr)
            self.assertFalse(pathlib.Path(parent, "x").exists())


class FlagsTest(conclave.TestCase):
    def assert_usage_error(self, *args: str, names: str, code: int = 2, env=None):
        result = run(*args, env=env, timeout=20)
        self.assertEqual(result.returncode, code, result)
        self.assertEqual(result.stdout, "", result)
        self.assertIn(names, result.stderr)
        self.assertRegex(result.stderr, r"(?m)^error: ")

    def test_help_and_version_everywhere(self):
        version = run("--version")
        self.assertEqual(version.returncode, 0)
        self.assertRegex(version.stdout, r"\d+\.\d+\.\d+")
        self.assertEqual(run("--help").returncode, 0)
        for command in COMMANDS:
            with self.subTest(command=command):
                shown = run(command, "--help")
                self.assertEqual(shown.returncode, 0)
                self.assertIn(command, shown.stdout)
                self.assertEqual(run(command, "--version").returncode, 0)

    def test_wrong_flags_name_the_flag(self):
        model = ("--model", str(conclave.MODEL))
        self.assert_usage_error("serve", "--no-such-flag", names="--no-such-flag")
        self.assert_usage_error("serve", *model, "--listen", names="--listen")
        self.assert_usage_error("nonsense", names="nonsense")
        for value in ("127.0.0.1:80a", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1", ""):
            self.assert_usage_error("serve", *model, f"--listen={value}", names="--listen")
        for flag, values in {"--threads": ("-1", "1000000", "x"), "--workers": ("0", "-1", "100000"),
                             "--dtype": ("f64", "q4", "Q8", ""), "--isa": ("avx1024",), "--kv-memory": ("10", "1e30GiB", "-1GiB"),
                             "--drain-timeout": ("5", "5 s", "-1s"), "--max-num-seqs": ("0", "-1"),
                             "--prefill-chunk": ("0", "-5"), "--log-format": ("xml",), "--log-level": ("7",)}.items():
            for value in values:
                with self.subTest(flag=flag, value=value):
                    self.assert_usage_error("serve", *model, f"{flag}={value}", names=flag)

    def test_listening_for_everybody_needs_to_be_asked_for(self):
        self.assert_usage_error("serve", "--model", str(conclave.MODEL), "--listen", "0.0.0.0:0", names="--insecure")

    def test_a_secret_on_the_command_line_is_refused(self):
        self.assert_usage_error("serve", "--api-key", "sk-123", names="--api-key")

    def test_a_variable_is_a_flag(self):
        self.assert_usage_error("serve", "--model", str(conclave.MODEL), names="CONCLAVE_LISTEN",
                                env={"CONCLAVE_LISTEN": "127.0.0.1:80a"})

    def print_config(self, *args: str, env=None) -> str:
        result = run("serve", "--print-config", *args, env=env)
        self.assertEqual(result.returncode, 0, result)
        return result.stdout

    def test_flag_beats_variable_beats_file_beats_default(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write("workers: 2\nprefill-chunk: 32\nmax-num-seqs: 5\n")
            file.flush()
            shown = self.print_config("--config", file.name, "--workers", "4",
                                      env={"CONCLAVE_WORKERS": "3", "CONCLAVE_PREFILL_CHUNK": "48"})
        for line in (r"workers: 4\b.*flag|workers: 4\b.*command line", r"prefill-chunk: 48\b.*CONCLAVE_PREFILL_CHUNK",
                     r"max-num-seqs: 5\b", r"dtype: \(bf16, or what a packed folder holds\).*default"):
            self.assertRegex(shown, line)

    def test_a_wrong_config_file(self):
        for text, named in (("workerz: 2\n", "workerz"), ("workers: [\n", ""), ("workers: many\n", "workers"),
                            ("workers: 1\nworkers: 2\n", "workers")):
            with self.subTest(text=text), tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(text)
                file.flush()
                self.assert_usage_error("serve", "--config", file.name, code=3,
                                        names=named or os.path.basename(file.name))
        self.assert_usage_error("serve", "--config", "/nowhere.yaml", names="/nowhere.yaml", code=3)

    def test_closed_streams_and_a_bare_environment(self):
        # Descriptors 0 to 2 closed: whatever is opened next must not be taken for one of them.
        result = subprocess.run(["/bin/sh", "-c", 'exec "$0" ask -m "$1" "$2" "$3" <&- 2>&-', conclave.BINARY,
                                 str(conclave.MODEL), IMAGE, QUESTION], stdout=subprocess.PIPE, text=True, timeout=60,
                                env={"LC_ALL": "C"})
        self.assertEqual((result.returncode, result.stdout), (0, ANSWER + "\n"))

    def test_a_reader_that_goes_away(self):
        process = subprocess.Popen(conclave.command("inspect", str(conclave.MODEL), "--json"), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=conclave.clean_environment())
        process.stdout.close()
        self.assertGreaterEqual(process.wait(timeout=20), 0, "killed by a signal")
        process.stderr.close()

    def test_no_progress_bar_without_a_terminal(self):
        result = run("ask", "-m", str(conclave.MODEL), IMAGE, QUESTION)
        self.assertIsNone(re.search(r"\r|\x1b", result.stderr), result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
