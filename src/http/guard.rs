//! Who may send requests at all: no web page that a developer happens to visit may reach the server on their machine.
//!
//! A request's `Host` must be a loopback name on a loopback listener, so that a foreign name that resolves to this machine
//! gets nothing. Its `Origin` must be absent, the same, a loopback one, or listed. What browsers send without an `Origin`
//! (images, scripts, frames of other sites) is recognised by its `Sec-Fetch-Site`.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use subtle::ConstantTimeEq;

use crate::config::plan::Secret;
use crate::http::problem::Problem;

/// Whether a host name, without port, is this machine's own.
pub fn is_loopback_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return ip.to_canonical().is_loopback();
    }
    let name = bare.trim_end_matches('.');
    let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
    last.eq_ignore_ascii_case("localhost") && parent.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Host and port of an authority: `a:1`, `[::1]:1`, `a`.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) => {
            (host, Some(port))
        }
        _ => (authority, None),
    }
}

/// Refuses a request whose `Host` is not this machine, on a listener that only this machine reaches.
pub fn check_host(headers: &HeaderMap, loopback_listener: bool) -> Result<(), Problem> {
    if !loopback_listener {
        return Ok(());
    }
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
    if is_loopback_host(split_port(host).0) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "this address answers only to loopback host names (localhost, 127.0.0.1, [::1]); to serve others, listen on a network address",
    ))
}

/// Refuses a request from a foreign web page. Returns the origin to name in the answer, for allowed pages of other origins.
pub fn check_origin(method: &Method, headers: &HeaderMap, listed: &[String]) -> Result<Option<HeaderValue>, Problem> {
    let Some(origin) = headers.get(ORIGIN) else { return check_fetch_site(method, headers).map(|()| None) };
    let text = origin.to_str().unwrap_or("");
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
    if is_same(text, host) || is_loopback(text) || listed.iter().any(|allowed| allowed.eq_ignore_ascii_case(text)) {
        return Ok(Some(origin.clone()));
    }
    Err(refused(text))
}

fn refused(origin: &str) -> Problem {
    let shown: String = origin.chars().take(200).collect();
    Problem::new(StatusCode::FORBIDDEN, format!("the origin `{shown}` is not allowed here; to allow it, list it under `origins`"))
}

fn check_fetch_site(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let opened_by_a_person = || header("sec-fetch-mode") == "navigate" && header("sec-fetch-dest") == "document" && method == Method::GET;
    if header("sec-fetch-site") == "cross-site" && !opened_by_a_person() { Err(refused("another site")) } else { Ok(()) }
}

/// The authority of an `http` or `https` origin.
fn authority(origin: &str) -> Option<(&str, &str)> {
    [("http://", "80"), ("https://", "443")].into_iter().find_map(|(scheme, port)| {
        let rest = origin.get(..scheme.len()).filter(|s| s.eq_ignore_ascii_case(scheme)).map(|_| &origin[scheme.len()..])?;
        (!rest.is_empty() && !rest.contains(['/', '@', '?', '#'])).then_some((rest, port))
    })
}

fn is_same(origin: &str, host: &str) -> bool {
    authority(origin).is_some_and(|(authority, default)| {
        let ((a, port_a), (b, port_b)) = (split_port(authority), split_port(host));
        a.eq_ignore_ascii_case(b) && port_a.unwrap_or(default) == port_b.unwrap_or(default)
    })
}

fn is_loopback(origin: &str) -> bool {
    authority(origin).is_some_and(|(authority, _)| is_loopback_host(split_port(authority).0))
}

/// Requires `Authorization: Bearer TOKEN`, if a token is set. Takes the same time whatever is wrong with it.
pub fn check_token(headers: &HeaderMap, token: Option<&Secret>) -> Result<(), Problem> {
    let Some(token) = token else { return Ok(()) };
    let given = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("");
    let given = given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map_or("", |(_, token)| token.trim());
    if bool::from(given.as_bytes().ct_eq(token.0.as_bytes())) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNAUTHORIZED, "this call needs `Authorization: Bearer …` with the configured token"))
}

/// Requires the content type of JSON: a web page cannot send that to another origin without a preflight request.
pub fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be JSON and say so: `Content-Type: application/json`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (axum::http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn let_in(pairs: &[(&'static str, &str)]) -> bool {
        check_origin(&Method::GET, &headers(pairs), &["https://app.example".into()]).is_ok()
    }

    #[test]
    fn only_loopback_hosts_on_a_loopback_listener() {
        for (host, fits) in [
            ("localhost:3000", true),
            ("LOCALHOST", true),
            ("app.localhost:1", true),
            ("127.0.0.1:80", true),
            ("127.9.9.9", true),
            ("[::1]:3000", true),
            ("[::ffff:127.0.0.1]", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
            ("localhost:3@10.0.0.1", false),
            ("localhost:80:80", false),
            ("evil.example/a.localhost", false),
            ("", false),
        ] {
            assert_eq!(check_host(&headers(&[("host", host)]), true).is_ok(), fits, "{host}");
            assert!(check_host(&headers(&[("host", host)]), false).is_ok());
        }
    }

    #[test]
    fn none_the_same_loopback_and_listed_origins_are_let_in() {
        let at = |origin| let_in(&[("host", "tool.example:8080"), ("origin", origin)]);
        for origin in [
            "http://tool.example:8080",
            "http://localhost:5173",
            "https://127.0.0.1",
            "http://[::1]:9",
            "https://app.example",
            "HTTPS://APP.EXAMPLE",
        ] {
            assert!(at(origin), "{origin}");
        }
        for origin in [
            "http://tool.example",
            "https://tool.example:8081",
            "http://evil.example",
            "https://app.example.evil",
            "null",
            "",
            "http://localhost.evil.example",
            "file://localhost",
            "http://evil.example@localhost",
            "chrome-extension://localhost",
        ] {
            assert!(!at(origin), "{origin}");
        }
        assert!(let_in(&[("host", "localhost")]));
        assert!(let_in(&[("host", "tool.example"), ("origin", "http://tool.example")]));
        assert!(let_in(&[("host", "tool.example:443"), ("origin", "https://tool.example")]));
    }

    #[test]
    fn what_another_site_embeds_is_refused_and_what_a_person_opens_is_not() {
        assert!(!let_in(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]));
        assert!(!let_in(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")]));
        assert!(let_in(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]));
        assert!(let_in(&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "no-cors")]));
    }

    #[test]
    fn tokens_and_json() {
        let token = Secret("s3cret".into());
        for (value, fits) in
            [("Bearer s3cret", true), ("bearer s3cret", true), ("Bearer s3cre", false), ("s3cret", false), ("Basic s3cret", false)]
        {
            assert_eq!(check_token(&headers(&[("authorization", value)]), Some(&token)).is_ok(), fits, "{value}");
        }
        assert!(check_token(&headers(&[]), Some(&token)).is_err());
        assert!(check_token(&headers(&[]), None).is_ok());
        for (value, fits) in [
            ("application/json", true),
            ("application/json; charset=utf-8", true),
            ("application/vnd.api+json", true),
            ("text/plain", false),
            ("text/json", false),
        ] {
            assert_eq!(check_json(&headers(&[("content-type", value)])).is_ok(), fits, "{value}");
        }
    }
}
