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
