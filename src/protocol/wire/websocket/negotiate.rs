//! Which offer of compression a handshake's answer accepts (RFC 7692, section 7.1). Knows no headers but the values of one.

/// What is always accepted, and nothing but it: each message compressed for itself, in both directions. The server may ask for
/// this unasked, so that one compressed frame is right for every client, and none needs a state of its own.
const ACCEPTED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// The same where the client wants to hear of the window it asked for (RFC 7692, section 7.1.2.1).
const ACCEPTED_WINDOW: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";

/// The answer to the values of all `Sec-WebSocket-Extensions` headers: the first offer of `permessage-deflate` that can be kept.
/// None: there is none, and nothing is answered. An offer that is malformed, repeats a parameter, has an unknown one, or asks for
/// a window smaller than the shared compressor's is passed over.
pub fn negotiate<'a>(offers: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    offers.flat_map(|line| unquoted(line, ',')).find_map(accept)
}

fn accept(offer: &str) -> Option<&'static str> {
    let mut parts = unquoted(offer, ';');
    if parts.next()?.trim_matches(BLANK) != "permessage-deflate" {
        return None;
    }
    let mut seen = [false; 4];
    for part in parts {
        let (name, value) = match part.split_once('=') {
            None => (part, None),
            Some((name, value)) => (name, Some(token(value.trim_matches(BLANK))?)),
        };
        let which = match (name.trim_matches(BLANK), value) {
            ("server_no_context_takeover", None) => 0,
            ("client_no_context_takeover", None) => 1,
            ("server_max_window_bits", Some("15")) => 2,
            ("client_max_window_bits", None | Some("8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")) => 3,
            _ => return None,
        };
        if std::mem::replace(&mut seen[which], true) {
            return None;
        }
    }
    Some(if seen[2] { ACCEPTED_WINDOW } else { ACCEPTED })
}

/// What may stand around a token.
const BLANK: [char; 2] = [' ', '\t'];

/// A value without its quotes, if it has both or neither. No value that is accepted has anything to escape.
fn token(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"'),
        None => Some(value),
    }
}

/// The parts of a header between separators that are not in quotes.
fn unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut in_quotes, mut is_escaped) = (false, false);
    text.split(move |c| {
        let separates = c == separator && !in_quotes;
        if is_escaped {
            is_escaped = false;
        } else if c == '"' {
            in_quotes = !in_quotes;
        } else if c == '\\' {
            is_escaped = in_quotes;
        }
        separates
    })
}
