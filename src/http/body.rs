//! Reading a request: its body, bounded in size and time, and the parts that templates may use.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use bytestring::ByteString;

use crate::http::guard;
use crate::http::problem::Problem;
use crate::model::view::RequestView;
use crate::model::{Json, json};
use crate::routing::paths::{Parameters, parse_query, percent_decode};

/// How long a body may take.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// Reads a JSON body. None for a request that has none.
pub async fn read_json(parts: &Parts, body: Body, bytes_max: usize) -> Result<Option<Json>, Problem> {
    let length = parts.headers.get("content-length").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    let has_body = length.is_some_and(|n| n > 0) || parts.headers.contains_key("transfer-encoding");
    if !has_body {
        return Ok(None);
    }
    if parts.method != Method::GET {
        guard::check_json(&parts.headers)?;
    }
    let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {bytes_max} bytes"));
    if length.is_some_and(|n| n > bytes_max) {
        return Err(too_large());
    }
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long");
    let bytes = tokio::time::timeout(BODY_WITHIN, to_bytes(body, bytes_max)).await.map_err(late)?.map_err(|_| too_large())?;
    let invalid = |why: String| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {why}"));
    let text = ByteString::try_from(bytes).map_err(|_| invalid("not UTF-8".into()))?;
    match Json::parse(text) {
        Ok(json) => Ok(Some(json)),
        Err(json::Error::TooDeep) => Err(invalid(json::Error::TooDeep.to_string())),
        Err(json::Error::Syntax(why)) => Err(invalid(why)),
    }
}

/// What templates see of a request.
pub fn request_view(parts: &Parts, path: Parameters) -> RequestView {
    let header = parts.headers.iter().filter_map(|(name, value)| Some((name.as_str().into(), value.to_str().ok()?.into()))).collect();
    RequestView { query: parts.uri.query().map(parse_query).unwrap_or_default(), path, header, cookie: cookies(&parts.headers) }
}

fn cookies(headers: &HeaderMap) -> Parameters {
    let all = headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(name, value)| (name.into(), percent_decode(value.trim_matches('"')).into()))
        .collect()
}
