//! Addresses and paths, and who shares them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, elsewhere};
use super::node::Node;
use super::plan::{Listen, SourceSpan};
use super::tls::Covers;
use super::values;
use crate::model::pattern::Pattern;

/// An address with nothing behind it.
pub(super) fn address(all: &Collected, node: &Node) -> Option<Listen> {
    let (listen, path) = split(all, node)?;
    if path.is_empty() {
        Some(listen)
    } else {
        all.fail(codes::ADDRESS, &node.span, format!("only an address is allowed here, without a path: `{listen}`"))
    }
}

/// An address and a path; no path is `/`.
pub(super) fn address_and_path(all: &Collected, node: &Node) -> Option<(Listen, Pattern)> {
    let (listen, path) = split(all, node)?;
    Some((listen, self::path(all, if path.is_empty() { "/" } else { &path }, &node.span)?))
}

/// A placeholder for an address that is not valid, so that the rest is still checked.
pub(super) fn nowhere() -> Option<(Listen, Pattern)> {
    Some((Listen { host: "localhost".into(), port: 0 }, Pattern::path("/").ok()?))
}

/// A URL path, with parameters.
pub(super) fn path(all: &Collected, written: &str, at: &SourceSpan) -> Option<Pattern> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '%' | '"' | '<' | '>' | '\\');
    if !written.starts_with('/') || !written.chars().all(plain) {
        return all.fail(
            codes::ADDRESS,
            at,
            format!("`{written}` is not a valid path: it must begin with `/` and have no spaces, `?`, `#` or `%`"),
        );
    }
    Pattern::path(written).map_or_else(|why| all.fail(codes::PATTERN, at, format!("`{written}` is not a valid path pattern: {why}")), Some)
}

fn split(all: &Collected, node: &Node) -> Option<(Listen, String)> {
    let written = values::text(all, node)?;
    let (address, path) = written.find('/').map_or((&*written, ""), |i| written.split_at(i));
    match parse(address) {
        Some(listen) => Some((listen, path.into())),
        None => {
            let message = format!("`{address}` is not a valid address");
            let hint = "write `localhost:3000`, `0.0.0.0:3000` or `[::]:3000`, followed by a path where one is needed";
            all.report(Diagnostic::new(codes::ADDRESS, node.span.clone(), message).hint(hint));
            None
        }
    }
}

fn parse(address: &str) -> Option<Listen> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))?;
    let host: Arc<str> = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().ok()?.to_string().into(),
        None if host == "localhost" => host.into(),
        None => host.parse::<Ipv4Addr>().ok()?.to_string().into(),
    };
    Some(Listen { host, port })
}

/// A pattern without the names of its captures: two patterns of one shape match the same names.
pub(super) fn shape(pattern: &Pattern) -> String {
    let (mut out, mut inside) = (String::new(), false);
    for c in pattern.as_str().chars() {
        inside = inside && c != '}';
        if !inside || c == '*' {
            out.push(c);
        }
        inside |= c == '{';
    }
    out
}

/// All listeners, collected while reading, to find conflicts.
#[derive(Default)]
pub(super) struct Listeners {
    listeners: Vec<Listener>,
    pub(super) covers: Covers,
}

struct Listener {
    listen: Listen,
    /// `GET`, …, or `WebSocket`.
    method: Arc<str>,
    path: Pattern,
    /// "the protocol `canvas`"
    owner: String,
    at: SourceSpan,
}

impl Listeners {
    pub(super) fn add(&mut self, listen: &Listen, method: &str, path: &Pattern, owner: String, at: &SourceSpan) {
        self.listeners.push(Listener { listen: listen.clone(), method: method.into(), path: path.clone(), owner, at: at.clone() });
    }

    /// Reports every listener that conflicts with an earlier one or with `api`.
    pub(super) fn check(&self, all: &Collected, api: &Listen) {
        self.covers.check(all);
        let mut by_port: HashMap<u16, Vec<&Listener>> = HashMap::new();
        let mut taken: HashMap<(&Listen, &str, String), &Listener> = HashMap::new();
        for listener in self.listeners.iter().filter(|listener| listener.listen.port != 0) {
            if listener.listen.overlaps(api) {
                let message = format!("{} listens on the address of `api`, {api}", listener.owner);
                all.report(Diagnostic::new(codes::API_SHARED, listener.at.clone(), message).hint("use another port for one of them"));
            }
            let report = |other: &Listener, message: String| {
                let hint = format!("{} is {}", other.owner, elsewhere(&other.at.location, &listener.at));
                all.report(Diagnostic::new(codes::CLASH, listener.at.clone(), message).hint(hint));
            };
            let same_port = by_port.entry(listener.listen.port).or_default();
            if !same_port.iter().any(|other| other.listen == listener.listen) {
                if let Some(other) = same_port.iter().find(|other| other.listen.overlaps(&listener.listen)) {
                    report(
                        other,
                        format!("{} and {} cannot both be bound; write the same address for both", listener.listen, other.listen),
                    );
                }
                same_port.push(listener);
            }
            match taken.entry((&listener.listen, &listener.method, shape(&listener.path))) {
                Entry::Occupied(other) => {
                    report(other.get(), format!("{} {} on {} is already taken", listener.method, listener.path, listener.listen));
                }
                Entry::Vacant(free) => {
                    free.insert(listener);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Listen {
        parse(text).unwrap()
    }

    #[test]
    fn addresses() {
        assert_eq!(listen("localhost:0").port, 0);
        assert_eq!(listen("[::1]:80").to_string(), "[::1]:80");
        for wrong in ["", "localhost", "example.org:80", "127.0.0.1:99999", "::1:80", "127.0.0.1:+80", ":80", "[127.0.0.1]:80", "1.2.3:80"]
        {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn listeners_that_get_in_each_others_way() {
        assert!(listen("localhost:1").overlaps(&listen("127.0.0.1:1")));
        assert!(listen("0.0.0.0:1").overlaps(&listen("localhost:1")));
        assert!(!listen("0.0.0.0:1").overlaps(&listen("[::1]:1")));
        assert!(!listen("localhost:1").overlaps(&listen("localhost:2")));
        assert!(!listen("localhost:0").overlaps(&listen("localhost:0")));
    }

    #[test]
    fn names_of_captures_are_no_difference() {
        assert_eq!(shape(&Pattern::path("/a/{b}/c/{d*}").unwrap()), "/a/{}/c/{*}");
    }
}
