// The page of one's own account. The access token is kept in this variable
// only: closing or reloading the page forgets it.
'use strict';

const client = '/_matrix/client/v3';
const own = '/_matrix/client/unstable/org.parley/account';
const $ = (id) => document.getElementById(id);
let token = '';
let ours = false; // the token was made here, and ends here
let me = '';

const say = (text) => { $('status').textContent = text; };

async function call(method, path, body) {
  const res = await fetch(path, {
    method,
    headers: { ...(token && { Authorization: `Bearer ${token}` }), ...(body && { 'Content-Type': 'application/json' }) },
    body: body && JSON.stringify(body),
  });
  const answer = await res.json().catch(() => ({}));
  if (!res.ok) throw Object.assign(new Error(answer.error || `The server answers ${res.status}`), { answer, status: res.status });
  return answer;
}

// Nothing that comes from the server becomes markup: text only.
function element(name, ...children) {
  const e = document.createElement(name);
  e.append(...children);
  return e;
}

const fill = (id, items) => $(id).replaceChildren(...items);
const row = (...cells) => element('tr', ...cells.map((c) => element('td', String(c))));
const bytes = (n) => (n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`);
const list = (names) => (names.length ? names.join(', ') : 'none');

async function show() {
  const [data, flows] = [await call('GET', `${own}/data`), await call('GET', `${own}/flows`)];
  me = data.user_id;
  $('who').textContent = me;
  const facts = { created: data.account.created, plan: data.account.plan || 'none', ...data.profile };
  fill('account', Object.entries(facts).flatMap(([k, v]) => [element('dt', k), element('dd', typeof v === 'string' ? v : JSON.stringify(v))]));
  $('usage').textContent = `${bytes(data.storage.used)} of ${data.storage.quota ? bytes(data.storage.quota) : 'no limit'}`;
  fill('devices', data.devices.map((d) => element('li', `${d.display_name || 'without a name'} (${d.device_id})`)));
  fill('rooms', data.rooms.map((r) => element('li', `${r.room_id}: ${r.membership}`)));
  fill('files', data.files.map((f) => element('li', `${f.name || 'without a name'}, ${bytes(f.size)}${f.ends ? `, until ${f.ends}` : ''}`)));
  fill('rows', data.rows.map((r) => row(r.what || r.family, r.count, r.bytes, r.lifetime)));
  fill('flows', flows.rooms.map((f) => row(f.room_id, list(f.servers), list(f.former_servers))));
  $('raw').textContent = JSON.stringify(data, null, 2);
  $('login').hidden = true;
  $('page').hidden = false;
  await showExports();
}

async function showExports() {
  const { exports } = await call('GET', `${own}/export`);
  fill('exports', exports.map((x) => {
    const until = new Date(x.expires_ts).toLocaleString();
    if (x.state !== 'done') return element('li', x.state === 'running' ? 'An archive is being made.' : 'The archive could not be made. Please try again.');
    const get = element('button', 'Download');
    get.addEventListener('click', () => guard(() => download(x)));
    return element('li', `Archive of ${bytes(x.size)}, until ${until} `, get);
  }));
  if (exports.some((x) => x.state === 'running')) setTimeout(() => guard(showExports), 2000);
}

async function download(x) {
  const res = await fetch(`${own}/export/${x.id}/file`, { headers: { Authorization: `Bearer ${token}` } });
  if (!res.ok) throw new Error('The archive has expired');
  const url = URL.createObjectURL(await res.blob());
  const a = element('a');
  a.href = url;
  a.download = 'parley-export.tar.pgp';
  a.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

async function guard(f) {
  try {
    say('');
    await f();
  } catch (e) {
    say(e.message);
  }
}

const onSubmit = (id, f) => $(id).addEventListener('submit', (ev) => {
  ev.preventDefault();
  guard(() => f(new FormData(ev.target), ev.target));
});

onSubmit('login', async (form, el) => {
  const answer = await call('POST', `${client}/login`, {
    type: 'm.login.password', identifier: { type: 'm.id.user', user: form.get('user') },
    password: form.get('password'), initial_device_display_name: 'Account page',
  });
  [token, ours] = [answer.access_token, true];
  el.reset();
  await show();
});

$('with-token').addEventListener('click', () => guard(async () => {
  [token, ours] = [new FormData($('login')).get('token').trim(), false];
  $('login').reset();
  await show();
}));

$('logout').addEventListener('click', () => guard(async () => {
  if (ours) await call('POST', `${client}/logout`, {});
  location.reload();
}));

onSubmit('export', async (form, el) => {
  const body = { compat: form.get('compat') === 'on' };
  if (form.get('passphrase')) body.passphrase = form.get('passphrase');
  if (form.get('key').trim()) body.public_key = form.get('key');
  await call('POST', `${own}/export`, body);
  el.reset();
  await showExports();
});

onSubmit('erase', async (form, el) => {
  if (form.get('id').trim() !== me) throw new Error('That is not your user ID');
  const answer = await call('POST', `${client}/account/deactivate`, {
    erase: true,
    auth: { type: 'm.login.password', identifier: { type: 'm.id.user', user: me }, password: form.get('password') },
  });
  el.reset();
  const reach = answer['org.parley.erasure'] || {};
  token = '';
  $('page').hidden = true;
  $('gone').hidden = false;
  $('gone-text').textContent = `${reach.here || ''} ${reach.elsewhere || ''}`;
  fill('gone-servers', [
    ...(reach.asked_servers || []).map((s) => element('li', `${s}: asked to redact`)),
    ...(reach.unasked_servers || []).map((s) => element('li', `${s}: can't be asked, you had left`)),
  ]);
});
