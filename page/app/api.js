// Asking the server for something, by paths beside the page, so that it may live behind a prefix.

// The answer to a request whose body, if any, is JSON; throws the server's own words where it refuses.
export async function request(path, {body, key, signal} = {}) {
	const headers = {...(key && {Authorization: `Bearer ${key}`}), ...(body && {"Content-Type": "application/json"})};
	const response = await fetch(path, {method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body)});
	if (response.ok) return response;
	const problem = await response.json().catch(() => ({}));
	throw new Error(problem.error?.message ?? `${path}: the server answered ${response.status}`);
}

export async function ask(path, options) {
	return (await request(path, options)).json();
}
