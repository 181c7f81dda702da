//! Reading a request: its body, bounded in size and time, and the parts that templates may use.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::http::guard;
use crate::http::problem::Problem;
use crate::model::view::RequestView;
use crate::model::{Json, json};
use crate::routing::paths::{Parameters, parse_query, percent_decode};

/// How long a body may take.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// How many bytes of a body that is too large are read and thrown away.
const DISCARDED_BYTES_MAX: usize = 128 << 20;

/// How long that may take.
const DISCARD_WITHIN: Duration = Duration::from_secs(2);

/// Reads a JSON body. None for a request that has none.
pub async fn read_json(parts: &Parts, body: Body, bytes_max: usize) -> Result<Option<Json>, Problem> {
    if !has_body(&parts.headers) {
        return Ok(None);
    }
    check_kind(&parts.method, &parts.headers)?;
    let length = length(&parts.headers);
    let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {bytes_max} bytes"));
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long");
    let kept_max = if length.is_some_and(|n| n > bytes_max) { 0 } else { bytes_max };
    let bytes = timeout(BODY_WITHIN, collect(body, kept_max)).await.map_err(late)?.ok_or_else(too_large)?;
    let invalid = |why: String| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {why}"));
    let text = ByteString::try_from(bytes).map_err(|_| invalid("not UTF-8".into()))?;
    match Json::parse(text) {
        Ok(json) => Ok(Some(json)),
        Err(json::Error::TooDeep) => Err(invalid(json::Error::TooDeep.to_string())),
        Err(json::Error::Syntax(why)) => Err(invalid(why)),
    }
}

/// Refuses a body that does not say that it is JSON. The body of a GET has no meaning.
pub fn check_kind(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if has_body(headers) && method != Method::GET { guard::check_json(headers) } else { Ok(()) }
}

fn has_body(headers: &HeaderMap) -> bool {
    length(headers).is_some_and(|n| n > 0) || headers.contains_key("transfer-encoding")
}

fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get("content-length").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok())
}

/// The whole body; none where it is too large or breaks off.
async fn collect(body: Body, bytes_max: usize) -> Option<Bytes> {
    let (mut chunks, mut kept) = (body.into_data_stream(), BytesMut::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.ok()?;
        if kept.len() + chunk.len() > bytes_max {
            // It does not matter whether the client finishes in time.
            timeout(DISCARD_WITHIN, discard(chunks)).await.unwrap_or(());
            return None;
        }
        kept.extend_from_slice(&chunk);
    }
    Some(kept.freeze())
}

/// Reads on: a client that is still writing would not see the answer.
async fn discard(mut chunks: BodyDataStream) {
    let mut passed = 0;
    while let Some(Ok(chunk)) = chunks.next().await {
        passed += chunk.len();
        if passed > DISCARDED_BYTES_MAX {
            return;
        }
    }
}

/// What templates see of a request. Headers of the handshake itself are left out: they say nothing about the client.
pub fn request_view(parts: &Parts, path: Parameters) -> RequestView {
    let is_shown =
        |name: &HeaderName| ![CONNECTION, UPGRADE, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION].contains(name);
    let headers = parts.headers.iter().filter(|(name, _)| is_shown(name));
    RequestView {
        query: parts.uri.query().map(parse_query).unwrap_or_default().into_iter().collect(),
        path: path.into_iter().collect(),
        header: headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect(),
        cookie: cookies(&parts.headers).into_iter().collect(),
    }
}

fn cookies(headers: &HeaderMap) -> Parameters {
    let all = headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(name, value)| (name.into(), percent_decode(value.trim_matches('"')).into()))
        .collect()
}
