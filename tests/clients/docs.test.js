// `/docs` in a browser: it shows every call of /openapi.json and asks nobody but the server. The browser is Debian's chromium.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import test from 'node:test';
import { chromium } from 'playwright-core';
import { start } from './tramline.js';

const executablePath = process.env.CHROMIUM_BIN || '/usr/bin/chromium';
const options = { timeout: 60_000, skip: existsSync(executablePath) ? false : `no browser at ${executablePath}` };

// Nothing of the browser's own reaches out while a test looks at what is asked for.
const QUIET = [
  '--no-sandbox',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-default-apps',
  '--disable-domain-reliability',
  '--disable-sync',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--no-proxy-server',
];

/** A page, what was asked for on it, and what it complained about. */
async function open(t) {
  const browser = await chromium.launch({ executablePath, args: QUIET });
  t.after(() => browser.close());
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const [asked, complaints] = [[], []];
  page.on('request', (request) => asked.push(request.url()));
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && complaints.push(message.text()));
  page.on('pageerror', (error) => complaints.push(String(error)));
  return { page, asked, complaints };
}

const operations = (document) =>
  Object.entries(document.paths).flatMap(([path, item]) => Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`));

test('the page shows every call and asks nobody but the server', options, async (t) => {
  const server = await start(t);
  const { page, asked, complaints } = await open(t);
  const described = await (await server.fetch('http://localhost:4000/openapi.json')).json();
  const url = server.lead('http://localhost:4000/docs');
  await page.goto(url);
  await page.waitForSelector('body[data-shown]');
  const shown = await page.$$eval('[data-operation]', (all) => all.map((one) => one.dataset.operation));
  assert.deepEqual(shown.toSorted(), operations(described).toSorted());
  // Every one can be reached from the list beside it, and says something.
  const links = await page.$$eval('nav a', (all) => all.map((one) => document.querySelector(one.getAttribute('href'))?.dataset.operation));
  assert.deepEqual(links.toSorted(), shown.toSorted());
  const publish = await page.textContent('#publish');
  for (const part of ['Publish an event', '/api/publish', 'curl -X POST', 'one of `channel`'.replaceAll('`', ''), '1 to 256 characters', '422', '202']) {
    assert.ok(publish.includes(part), `${part} is not in: ${publish}`);
  }
  assert.ok((await page.textContent('#stats')).includes(`curl '${new URL(url).origin}/api/stats?from=-1h&step=1m'`));
  // A person can ask from the page.
  const form = page.locator('#one_channel');
  await form.getByText('ask this server').click();
  await form.getByLabel('name').fill('nobody/here');
  await form.getByRole('button', { name: 'Ask' }).click();
  await form.getByText('no channel `nobody/here` is live').waitFor();
  const origins = new Set(asked.map((one) => new URL(one).origin).filter((origin) => origin !== 'null'));
  assert.deepEqual([...origins], [new URL(url).origin]);
  // The browser itself notes the 404 that was asked for; nothing else is wrong.
  assert.deepEqual(complaints.filter((text) => !text.includes('404')), []);
});

test('nothing but the page itself may run on the page', options, async (t) => {
  const server = await start(t);
  const { page } = await open(t);
  await page.goto(server.lead('http://localhost:4000/docs'));
  await page.waitForSelector('body[data-shown]');
  const ran = await page.evaluate(async () => {
    const blocked = new Promise((done) => document.addEventListener('securitypolicyviolation', (event) => done(event.violatedDirective)));
    const script = document.createElement('script');
    script.textContent = 'window.ran = true';
    document.body.append(script);
    return [await blocked, window.ran ?? false];
  });
  assert.deepEqual(ran, ['script-src-elem', false]);
});
