// Arrays of a reply: base64 of a NumPy file of version 1, int16 or float32, row by row, as the frontend writes them.

const KINDS = {"<i2": Int16Array, "<f4": Float32Array};

// {shape, values}; throws where the text is not such a file.
export function decodeNpy(base64) {
	const text = atob(base64);
	const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
	if (text.slice(1, 6) !== "NUMPY" || bytes[0] !== 0x93 || bytes[6] !== 1) throw new Error("not a NumPy file of version 1");
	const start = 10 + bytes[8] + 256 * bytes[9];
	const header = text.slice(10, start);
	const kind = KINDS[/'descr': '([^']+)'/.exec(header)?.[1]];
	const shapeText = /'shape': \(([^)]*)\)/.exec(header)?.[1];
	if (!kind || shapeText === undefined || !header.includes("'fortran_order': False")) {
		throw new Error(`unexpected NumPy header ${header.trim()}`);
	}
	const shape = shapeText.split(",").map((part) => part.trim()).filter(Boolean).map(Number);
	const size = shape.reduce((product, n) => product * n, 1);
	if (bytes.length - start !== size * kind.BYTES_PER_ELEMENT) throw new Error("the NumPy file is cut off");
	return {shape, values: new kind(bytes.slice(start).buffer)};
}
