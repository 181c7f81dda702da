//! Errors over HTTP: `application/problem+json` (RFC 9457), with every flaw named by its path.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::model::fault::Flaw;
use crate::model::{Code, Fault, Json};

/// A refused request.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    errors: Vec<Flaw>,
    kind: &'static str,
    retry_after_s: Option<u64>,
    allow: Option<String>,
    extension: Option<(&'static str, serde_json::Value)>,
}

impl Problem {
    /// A problem with a status and what happened, why, and what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), errors: Vec::new(), kind: "about:blank", retry_after_s: None, allow: None, extension: None }
    }

    /// Adds everything that is wrong, each with its path.
    #[must_use]
    pub fn errors(mut self, errors: Vec<Flaw>) -> Self {
        self.errors = errors;
        self
    }

    /// The methods that the path allows.
    #[must_use]
    pub fn allow(mut self, methods: String) -> Self {
        self.allow = Some(methods);
        self
    }

    /// A member that only this kind of problem has.
    #[must_use]
    pub fn extension(mut self, name: &'static str, value: &impl Serialize) -> Self {
        self.extension = serde_json::to_value(value).ok().map(|value| (name, value));
        self
    }
}

impl Problem {
    /// A fault for the application: with details that only the operator of the server may know.
    pub fn with_reason(fault: Fault) -> Self {
        let reason = fault.detail.clone().filter(|_| fault.code == Code::Unavailable);
        let mut problem = Self::from(fault);
        if let Some(reason) = reason {
            problem.detail = format!("{}: {reason}", problem.detail);
        }
        problem
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let status = StatusCode::from_u16(fault.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = fault.retry_after_s().or((status == StatusCode::SERVICE_UNAVAILABLE).then_some(1));
        Self { status, detail: detail(&fault), errors: fault.flaws, kind: fault.code.as_str(), retry_after_s, allow: None, extension: None }
    }
}

/// What happened. A client of a protocol knows which channel it named, and `$error.data` says it; an application may have named many.
fn detail(fault: &Fault) -> String {
    let is_default = fault.code == Code::UnknownChannel && fault.message == fault.code.default_message();
    let data = fault.data.as_ref().filter(|_| is_default).and_then(|data| serde_json::from_str::<serde_json::Value>(data.as_str()).ok());
    match data.as_ref().and_then(|data| data["channel"].as_str()) {
        Some(channel) => format!("unknown channel `{channel}`: no key of `channels` matches it"),
        None => fault.message.clone(),
    }
}

/// Why a request was refused (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Refusal {
    /// `about:blank`, or the kind of fault.
    #[serde(rename = "type")]
    #[schema(example = "urn:tramline:fault:unknown_channel")]
    kind: String,
    /// The status in words.
    #[schema(example = "Not Found")]
    title: &'static str,
    /// The status.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    status: u16,
    /// What happened, why, and what to do.
    #[schema(example = "unknown channel `chta`: no key of `channels` matches it")]
    detail: String,
    /// Everything that is wrong, if there may be several things.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<RefusedPart>,
    /// What only this kind of problem has.
    #[serde(flatten)]
    #[schema(ignore)]
    extension: BTreeMap<&'static str, serde_json::Value>,
}

/// One thing that is wrong.
#[derive(Serialize, ToSchema)]
#[schema(as = ProblemPart)]
struct RefusedPart {
    /// JSON Pointer into the body, or the name of a parameter. Empty for the whole.
    #[schema(example = "/type")]
    path: String,
    /// What is wrong there.
    #[schema(example = "must be a text of 1 to 256 characters")]
    message: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let body = Refusal {
            kind: if self.kind == "about:blank" { self.kind.to_owned() } else { format!("urn:tramline:fault:{}", self.kind) },
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail,
            errors: self.errors.into_iter().map(|flaw| RefusedPart { path: flaw.path, message: flaw.message }).collect(),
            extension: self.extension.into_iter().collect(),
        };
        let mut response = Response::new(Body::from(Json::of(&body).as_str().to_owned()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow.and_then(|methods| HeaderValue::from_str(&methods).ok()) {
            headers.insert(ALLOW, allow);
        }
        if self.status == StatusCode::UPGRADE_REQUIRED {
            // What to upgrade to, as RFC 9110 (15.5.22) and RFC 6455 (4.4) require.
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
