"""Goal: a packed folder takes its checkpoint's place in every role, answers alike, and is refused when it is not whole.

Method: the demo is packed by the command; a cluster whose workers read the packed folder and the checkpoint, and a frontend of
each, answer recorded questions beside an undisturbed server; packed files are cut, changed and asked for in another mode.
"""

import json
import pathlib
import shutil
import tempfile
import unittest

import cluster as clusters
import conclave_process as conclave

BODIES = clusters.bodies_of([sample for sample in conclave.samples() if sample["image"]][:4])
WEIGHTS = "conclave-weights.pack"


class PackTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="conclave-pack-")
        cls.root = pathlib.Path(cls.folder.name)
        cls.packed = {}
        cls.results = {}
        for dtype in ("bf16", "q8"):
            (cls.root / dtype).mkdir()
            cls.packed[dtype] = cls.root / dtype / "demo"  # the name that requests say
            cls.results[dtype] = conclave.run("pack", str(conclave.MODEL), str(cls.packed[dtype]), "--dtype", dtype)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def copy_of(self, name: str) -> pathlib.Path:
        folder = self.root / name
        shutil.copytree(self.packed["bf16"], folder)
        return folder

    def refused(self, reason: str, *args: str) -> str:
        result = conclave.run(*args)
        self.assertEqual((result.returncode, result.stdout), (4, ""), result.stderr)
        self.assertRegex(result.stderr.splitlines()[-1], rf"^error: {reason}: ")
        return result.stderr

    def test_packs_and_verifies(self):
        for dtype, folder in self.packed.items():
            self.assertEqual(self.results[dtype].returncode, 0, self.results[dtype].stderr)
            verified = conclave.run("pack", "--verify", str(folder))
            self.assertEqual(verified.returncode, 0, verified.stderr)
        self.assertLess((self.packed["q8"] / WEIGHTS).stat().st_size, 0.8 * (self.packed["bf16"] / WEIGHTS).stat().st_size)
        about = json.loads(conclave.run("inspect", str(self.packed["q8"]), "--json").stdout)
        source = json.loads(conclave.run("inspect", str(conclave.MODEL), "--json").stdout)
        self.assertEqual(about["parameters"], source["parameters"])

    def test_takes_the_place_of_its_checkpoint_in_a_cluster(self):
        expected = clusters.undisturbed(BODIES)
        packed = self.packed["bf16"]
        with clusters.Router() as router, clusters.Worker(router.control, "a", model=packed), \
                clusters.Worker(router.control, "b"), clusters.Frontend(router.control, model=packed) as first, \
                clusters.Frontend(router.control) as second:
            for frontend in (first, second):
                clusters.wait_until(lambda f=frontend: f.request("GET", "/health/ready").status == 200, "all experts served")
                self.assertEqual([clusters.answer_key(frontend.chat(body)) for body in BODIES], expected)

    def test_the_mode_is_what_the_folder_holds(self):
        with conclave.Server(model=self.packed["q8"]) as server:
            fingerprint = server.chat(BODIES[0]).json()["system_fingerprint"]
        self.assertRegex(fingerprint, r"-q8-")
        message = self.refused("packed_dtype", "ask", "-m", str(self.packed["q8"]), "--dtype", "bf16", "Hello?")
        self.assertRegex(message, r"expected --dtype q8 or none, found --dtype bf16")

    def test_a_cut_file_is_refused(self):
        folder = self.copy_of("cut")
        size = (folder / WEIGHTS).stat().st_size
        with open(folder / WEIGHTS, "r+b") as file:
            file.truncate(size - 100)
        self.refused("packed_truncated", "ask", "-m", str(folder), "Hello?")

    def test_a_changed_header_and_index_are_refused(self):
        for name, place in (("header", 20), ("index", -50)):
            folder = self.copy_of(name)
            with open(folder / WEIGHTS, "r+b") as file:
                file.seek(place, 2 if place < 0 else 0)
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 1]))
            self.refused("packed_(header|index|version)", "ask", "-m", str(folder), "Hello?")

    def test_changed_weights_are_found_where_they_are_looked_for(self):
        folder = self.copy_of("weights")
        with open(folder / WEIGHTS, "r+b") as file:
            file.seek(4096 + 1000)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
        self.refused("packed_checksum", "pack", "--verify", str(folder))
        self.refused("packed_checksum", "ask", "-m", str(folder), "--verify-weights", "Hello?")

    def test_is_not_packed_twice_nor_over_something(self):
        self.refused("packed_already", "pack", str(self.packed["bf16"]), str(self.root / "again"))
        self.refused("folder_not_empty", "pack", str(conclave.MODEL), str(self.packed["bf16"]))
        self.assertFalse((self.root / "again").exists())


if __name__ == "__main__":
    unittest.main()
