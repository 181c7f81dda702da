//! What a request brings: paths, queries, and the headers that decide who is let in. Input, one a line: path, query, `Host`,
//! `Origin`, `Cookie`, `Authorization`, `Content-Type`.
#![no_main]

use http::{HeaderMap, HeaderValue, Method, Request, header};
use libfuzzer_sys::fuzz_target;
use tramline::config::plan::Secret;
use tramline::http::body::request_view;
use tramline::http::guard::{check_host, check_json, check_origin, check_token, is_loopback_host};
use tramline::model::pattern::Pattern;
use tramline::routing::paths::{PathTable, parse_query, percent_decode};

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(7, '\n');
    let mut next = || lines.next().unwrap_or("");
    let (path, query) = (next(), next());
    decoding(path, query);

    let mut headers = HeaderMap::new();
    let host = next();
    let origin = next();
    for (name, value) in [
        (header::HOST, host),
        (header::ORIGIN, origin),
        (header::COOKIE, next()),
        (header::AUTHORIZATION, next()),
        (header::CONTENT_TYPE, next()),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    guards(&headers, host, origin);
    if let Ok(mut request) = Request::builder().uri(format!("{path}?{query}")).body(()) {
        *request.headers_mut() = headers;
        let (parts, ()) = request.into_parts();
        request_view(&parts, Vec::new());
    }
});

fn decoding(path: &str, query: &str) {
    assert_eq!(percent_decode(path), String::from_utf8_lossy(&decoded(path)));
    let plain: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
    assert_eq!(percent_decode(&plain), path);
    let expected: Vec<(Box<str>, Box<str>)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| [name, value].map(|text| String::from_utf8_lossy(&decoded(&text.replace('+', " "))).into()))
        .map(|[name, value]| (name, value))
        .collect();
    assert_eq!(parse_query(query), expected);

    let mut table: PathTable<u8> = PathTable::new();
    *table.entry(&Pattern::path("/a/{b}").expect("a pattern")) = 1;
    if let Some((1, values)) = table.find(path) {
        assert!(values.len() == 1 && path.starts_with("/a/"));
    }
}

fn decoded(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut i) = (text.as_bytes(), Vec::new(), 0);
    let digit = |at: usize| bytes.get(at).and_then(|&b| char::from(b).to_digit(16)).map(|digit| digit as u8);
    while i < bytes.len() {
        match (bytes[i], digit(i + 1), digit(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high * 16 + low);
                i += 3;
            }
            (byte, ..) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    out
}

fn guards(headers: &HeaderMap, host: &str, origin: &str) {
    // A name that a browser reads otherwise than the guard could lead here from outside.
    if check_host(headers, true).is_ok()
        && let Ok(seen) = url::Url::parse(&format!("http://{host}/"))
    {
        assert!(is_this_machine(&seen), "the host {host:?} is let in");
    }
    assert!(check_host(headers, false).is_ok());
    if headers.contains_key(header::ORIGIN)
        && check_origin(&Method::GET, headers, &[]).is_ok()
        && let Ok(seen) = url::Url::parse(origin)
    {
        let same = url::Url::parse(&format!("{}://{host}/", seen.scheme())).is_ok_and(|at| at.origin() == seen.origin());
        assert!(same || is_this_machine(&seen), "the origin {origin:?} is let in at {host:?}");
    }
    let token = Secret("s3cret".into());
    if check_token(headers, Some(&token)).is_ok() {
        assert!(headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains("s3cret")));
    }
    if check_json(headers).is_ok() {
        assert!(
            headers
                .get(header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .is_some_and(|value| value.to_lowercase().contains("json"))
        );
    }
}

fn is_this_machine(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => is_loopback_host(name),
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.to_canonical().is_loopback(),
        None => false,
    }
}
