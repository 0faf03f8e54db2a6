// Waiting for conditions.

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms).unref());

/**
 * Waits until `condition` (which may be async) gives something truthy, and
 * returns it. Errors of the condition end the wait.
 */
export async function until(condition, what, { timeout = 60_000, every = 30 } = {}) {
    const end = Date.now() + timeout;
    for (;;) {
        const value = await condition();
        if (value) return value;
        if (Date.now() > end) throw new Error(`waited ${timeout / 1000} s in vain: ${typeof what === "function" ? what() : what}`);
        await new Promise((resolve) => setTimeout(resolve, every));
    }
}

/** Like until, for a comparison: the failure shows what it was last. */
export async function eventually(actual, expected, what, options = {}) {
    const want = JSON.stringify(expected);
    let last;
    await until(async () => (last = JSON.stringify(await actual())) === want, () => `${what}: ${last}, want ${want}`, options);
}

/** Waits until a list of texts is exactly as expected; the failure says what is missing, twice or out of place. */
export async function eventuallyList(actual, expected, what, options = {}) {
    let last = [];
    const same = () => last.length === expected.length && last.every((x, i) => x === expected[i]);
    await until(async () => ((last = await actual()), same()), () => `${what}: ${difference(last, expected)}`, options);
}

function difference(got, want) {
    const count = (list) => list.reduce((m, x) => m.set(x, (m.get(x) ?? 0) + 1), new Map());
    const [have, need] = [count(got), count(want)];
    const missing = want.filter((x) => !have.has(x));
    const strange = [...have].filter(([x, n]) => n > (need.get(x) ?? 0)).map(([x, n]) => `${n} x ${x}`);
    const at = got.findIndex((x, i) => x !== want[i]);
    return `${got.length} of ${want.length}; missing ${JSON.stringify(missing)}; too many ${JSON.stringify(strange)}; ` +
        `order differs from ${at}: ${JSON.stringify(got.slice(Math.max(0, at), at + 4))}`;
}
