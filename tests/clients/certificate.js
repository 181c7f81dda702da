// A certificate that signs itself, made for one test out of what Node.js has: the DER of RFC 5280 by hand, so that neither a program
// nor a file with a key is needed. Good for `localhost` and 127.0.0.1, from yesterday until tomorrow. Knows no server.

import { generateKeyPairSync, randomBytes, sign } from 'node:crypto';

const DAY_MS = 24 * 3600 * 1000;

/** A DER value: tag, length, content. */
function der(tag, ...parts) {
  const content = Buffer.concat(parts.map((part) => Buffer.from(part)));
  const { length } = content;
  const bytes = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...bytes]), content]);
}

const sequence = (...parts) => der(0x30, ...parts);
const identifier = (hex) => der(0x06, Buffer.from(hex, 'hex'));
const bits = (content) => der(0x03, [0], content);
/** UTCTime: YYMMDDHHMMSSZ. */
const time = (at) => der(0x17, new Date(at).toISOString().replace(/^..|[-:T]|\.\d+/g, ''));

const ECDSA_WITH_SHA256 = sequence(identifier('2a8648ce3d040302'));
const NAME = sequence(der(0x31, sequence(identifier('550403'), der(0x0c, 'localhost'))));
const GOOD_FOR = sequence(der(0x82, 'localhost'), der(0x87, [127, 0, 0, 1]));

const pem = (content) => `-----BEGIN CERTIFICATE-----\n${content.toString('base64').replace(/.{64}/g, '$&\n')}\n-----END CERTIFICATE-----\n`;

/** `cert` and `key` as PEM. */
export function certificate() {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const now = Date.now();
  const signed = sequence(
    der(0xa0, der(0x02, [2])),
    der(0x02, [1], randomBytes(8)),
    ECDSA_WITH_SHA256,
    NAME,
    sequence(time(now - DAY_MS), time(now + DAY_MS)),
    NAME,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(sequence(identifier('551d11'), der(0x04, GOOD_FOR)))),
  );
  const signature = sign('sha256', signed, { key: privateKey, dsaEncoding: 'der' });
  return { cert: pem(sequence(signed, ECDSA_WITH_SHA256, bits(signature))), key: privateKey.export({ type: 'pkcs8', format: 'pem' }) };
}
