//! The description of the REST interface: `GET /openapi.json`, put together from the handlers that are also its routes.
//!
//! What every call can be refused for is added here, where it is decided: before any handler runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response as Described, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Header, ObjectBuilder, OpenApi, Ref, RefOr, SecurityRequirement, Type};
use utoipa::{IntoResponses, OpenApi as _};

use crate::http::api::Api;
use crate::http::api::query::Query;
use crate::http::problem::{Problem, Refusal};
use crate::http::routes::json;

/// The name of the security scheme.
const BEARER: &str = "bearer";

/// The calls that need no token. The page contains nothing secret; the calls that it makes need a token.
pub(super) const OPEN_TO_ALL: [&str; 3] = ["/healthz", "/readyz", "/docs"];

/// What the document says before its first path.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Tramline",
        description = "The application's interface: publish events, read the log, see and end connections.\n\n\
            Errors are `application/problem+json` (RFC 9457). A parameter that a call does not know is refused, so that a misspelt filter \
            never answers with everything. A method that a path does not take is answered with `405` and `Allow`; every `GET` is also a \
            `HEAD`. Times are UTC in RFC 3339 with milliseconds.",
    ),
    tags(
        (name = "publish", description = "Events from the application."),
        (name = "log", description = "Stored events, channels and positions."),
        (name = "connections", description = "Who is connected, and who was."),
        (name = "sessions", description = "Identities that outlive a connection."),
        (name = "state", description = "What runs: routes, plugins, sources, numbers."),
        (name = "health", description = "For monitoring. No token is needed."),
        (name = "description", description = "This interface, for programs and for people."),
    ),
    components(schemas(Refusal)),
)]
struct Head;

/// The document before its paths.
pub(super) fn head() -> OpenApi {
    Head::openapi()
}

/// Finishes the document. `token`: whether one is set.
pub(super) fn finish(mut document: OpenApi, token: bool) -> String {
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The configured token, `API_TOKEN`."));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(scheme.build()));
    components.responses.extend(refusals().map(|(name, response)| (name, response.into())));
    let bearer = SecurityRequirement::new(BEARER, Vec::<String>::new());
    document.security = Some(if token { vec![bearer] } else { vec![SecurityRequirement::default(), bearer] });
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            guarded(operation, OPEN_TO_ALL.contains(&&**path));
        }
    }
    document.to_json().unwrap_or_else(|_| "{}".into())
}

/// The refusals that can come before a handler runs.
fn guarded(operation: &mut Operation, open_to_all: bool) {
    let mut more = Foreign::responses();
    if open_to_all {
        operation.security = Some(vec![SecurityRequirement::default()]);
    } else {
        more.extend(Unknown::responses());
    }
    for (status, response) in more {
        operation.responses.responses.entry(status).or_insert(response);
    }
}

/// What a refusal looks like. Headers that come with its status are named.
fn refusal(status: u16, description: &str) -> Described {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let header = |description: &str, of: Type| {
        let mut header = Header::new(ObjectBuilder::new().schema_type(of).build());
        header.description = Some(description.into());
        header
    };
    let response = ResponseBuilder::new().description(description).content("application/problem+json", content);
    let response = match status {
        401 => response.header("www-authenticate", header("`Bearer`.", Type::String)),
        429 | 503 => response.header("retry-after", header("Seconds to wait, if known.", Type::Integer)),
        _ => response,
    };
    response.build()
}

macro_rules! refusals {
    ($($name:ident $status:literal $description:literal)+) => {
        $(
            #[doc = $description]
            pub(super) enum $name {}

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Described>> {
                    BTreeMap::from([(stringify!($status).to_owned(), Ref::from_response_name(stringify!($name)).into())])
                }
            }
        )+

        /// All of them, once, to be referred to.
        fn refusals() -> impl Iterator<Item = (String, Described)> {
            [$((stringify!($name), $status, $description)),+]
                .into_iter()
                .map(|(name, status, description)| (name.to_owned(), refusal(status, description)))
        }
    };
}

refusals! {
    BadQuery 400 "A parameter is unknown, repeated or not valid. `errors` names each of them."
    BadBody 400 "The body is not JSON, or not valid for this call. `errors` names every mistake."
    Unknown 401 "The token is missing or wrong."
    Foreign 403 "The request comes from a web page of another origin, or the event may not be published there."
    NotThere 404 "There is no such thing."
    Late 408 "The body took too long."
    TooLarge 413 "The body is too large."
    NotJson 415 "The body does not say that it is JSON."
    Broken 422 "The event does not match its channel's schema, a script refused it, or its `id` was used for another event. Nothing was published."
    TooMany 429 "A rate limit is exceeded. Nothing was published."
    Failed 500 "A script failed. Nothing was published."
    Unavailable 503 "The store does not answer, or a limit of the server is reached; `/readyz` says more."
}

/// This interface for programs
///
/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "description", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1.", body = serde_json::Map<String, serde_json::Value>), BadQuery))]
pub(super) async fn openapi(State(api): State<Arc<Api>>, uri: Uri) -> Result<Response<Body>, Problem> {
    Query::nothing(&uri)?;
    Ok(json(StatusCode::OK, api.descriptions[usize::from(api.live.snapshot().runtime.plan.api.token.is_some())].clone()))
}
