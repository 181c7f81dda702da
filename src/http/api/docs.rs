//! `GET /docs`: the description as a page to read. One file, which asks for nothing but `/openapi.json`.

use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY};
use axum::http::{Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::http::api::openapi::BadQuery;
use crate::http::api::query::Query;
use crate::http::api::{Answer, Api};

/// The page with its style and its script.
const PAGE: &str = include_str!("docs.html");

/// What the page may do: run its own script, use its own style, send requests to this server.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |element: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside(element))));
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
});

/// The text of the page's only element of this name.
fn inside(element: &str) -> &'static str {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map_or("", |(text, _)| text)
}

/// This interface for people
///
/// A page made of `/openapi.json`. It needs no network.
#[utoipa::path(get, path = "/docs", tag = "description",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html; charset=utf-8"), BadQuery))]
pub(super) async fn docs(State(_): State<Arc<Api>>, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    let mut response = Response::new(Body::from(PAGE));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    Ok(response)
}
