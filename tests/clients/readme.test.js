// Every example of README.md is run: what a reader copies works.
//
// An HTML comment before a fenced block, which readers don't see, says what the block is:
//
//   <!-- test: routes NAME -->          ```yaml  begins a scene: a new folder with this as routes.yaml, checked and served
//   <!-- test: routes NAME invalid -->  ```yaml  the same, but `tramline check` must refuse it; nothing is served
//   <!-- test: file plugins/x.rhai -->           a further file of the scene; before the scene's first command
//   <!-- test: run -->                  ```sh    a command in the scene's folder, `tramline` being on the path; must succeed
//   <!-- test: run fails -->            ```sh    the same, but must fail
//   <!-- test: node -->                 ```js    a program for Node.js; `ws` can be imported, and `WebSocket` is there as in a browser
//   <!-- test: none: REASON -->                  not run
//
// A ```text or ```json block that comes next is what the command prints; `…` stands for anything in its line, or for any lines where
// it stands alone. White space in JSON means nothing. A program that has printed what it should may go on: it is ended then.
// Before the first scene commands run beside the shipped routes.yaml. Addresses stand as a reader would type them (localhost:3000):
// the server gets other ports, and they are exchanged in files, commands and what is printed.
// Any other block that isn't marked is a fault, except `text` and `json`.

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { matches, verify } from './readme.js';
import { root, test } from './tramline.js';

const fixture = (name) => readFileSync(new URL(`fixtures/${name}`, import.meta.url), 'utf8');

async function faults(t, markdown) {
  const found = [];
  for await (const { line, fault } of verify(markdown, t)) if (fault) found.push([line, fault]);
  return found;
}

test('README.md: every example works', async (t) => {
  const path = join(root, 'README.md');
  assert.ok(existsSync(path), 'there is no README.md');
  let examples = 0;
  for await (const { line, what, fault } of verify(readFileSync(path, 'utf8'), t)) {
    examples += 1;
    await t.test(`README.md:${line} ${what}`, () => assert.ok(!fault, fault));
  }
  assert.ok(examples > 0, 'README.md has no example');
});

test('the runner: valid examples pass', async (t) => {
  assert.deepEqual(await faults(t, fixture('valid.md')), []);
});

test('the runner: each broken example is found, at its line', async (t) => {
  const markdown = fixture('broken.md');
  const found = await faults(t, markdown);
  // In the fixture each block at fault is announced by a line `Fault: PATTERN`.
  const wanted = markdown.split('\n').flatMap((line) => line.match(/^Fault: (.*)/)?.[1] ?? []);
  assert.equal(found.length, wanted.length, JSON.stringify(found, null, 1));
  for (const [i, pattern] of wanted.entries()) assert.match(found[i][1], new RegExp(pattern));
  assert.ok(found.every(([line]) => markdown.split('\n')[line - 1].includes('```')));
});

test('the runner: `…` stands for anything, and for no more than is said', () => {
  for (const [wanted, got, lang, fits] of [
    ['a … c', 'a b c', 'text', true],
    ['a … c', 'a b\nc', 'text', false],
    ['a\n…\nd', 'a\nb\nc\nd', 'text', true],
    ['a', 'a\n', 'text', true],
    ['a', 'ab', 'text', false],
    ['a.c', 'abc', 'text', false],
    ['{ "id": "…", "n": 1 }', '{"id":"x y","n":1}', 'json', true],
    ['{ "id": "…", "n": 1 }', '{"id":"x","n":2}', 'json', false],
    ['{ "s": "a b" }', '{"s":"ab"}', 'json', false],
  ]) {
    assert.equal(matches(wanted, got, lang), fits, `${wanted} | ${got}`);
  }
});
