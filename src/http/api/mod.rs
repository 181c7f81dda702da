//! The REST interface, for the application. Access is checked first, in the same way for every call.

mod config;
mod connections;
mod docs;
mod events;
mod history;
mod live;
mod openapi;
mod position;
mod publish;
mod query;
mod sessions;
mod shapes;
mod stats;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::Guard;
use axum::Router as AxumRouter;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path};
use axum::http::header::HeaderValue;
use axum::http::request::Parts;
use axum::http::{Method, Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::plan::Listen;
use crate::http::body::check_kind;
use crate::http::guard;
use crate::http::listen::{Serve, Served};
use crate::http::problem::Problem;
use crate::http::routes::{allow_methods, json, name_origin};
use crate::http::sessions::Sessions;
use crate::live::Live;
use crate::model::Json;
use crate::reload::Reloader;
use crate::sources::Supervisor;

/// What the calls share.
pub struct Api {
    live: Arc<Live>,
    sessions: Arc<Sessions>,
    sources: Arc<Supervisor>,
    reloader: Arc<Reloader>,
    stop: CancellationToken,
    recent: publish::RecentIds,
    exports: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    waiting: Semaphore,
    reading: Semaphore,
    /// The answers of `GET /openapi.json`, without and with a required token.
    descriptions: [String; 2],
}

impl Api {
    /// What the calls share. Once `stop` fires the server is not ready.
    pub fn new(
        live: Arc<Live>,
        sessions: Arc<Sessions>,
        sources: Arc<Supervisor>,
        reloader: Arc<Reloader>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            live,
            sessions,
            sources,
            reloader,
            stop,
            recent: publish::RecentIds::default(),
            exports: Arc::new(Semaphore::new(history::EXPORTS_MAX)),
            streams: Arc::new(Semaphore::new(events::STREAMS_MAX)),
            waiting: Semaphore::new(position::WAITING_MAX),
            reading: Semaphore::new(events::READING_MAX),
            descriptions: [false, true].map(|wants_token| openapi::finish(routes().split_for_parts().1, wants_token)),
        })
    }
}

/// The REST interface on its listener.
pub struct ApiRoutes {
    api: Arc<Api>,
    routes: AxumRouter,
    loopback: bool,
}

impl ApiRoutes {
    /// All calls, served at this address.
    pub fn new(api: Arc<Api>, listen: &Listen) -> Self {
        let (routes, _) = routes().split_for_parts();
        let routes = routes
            .fallback(async |uri: Uri| Problem::new(StatusCode::NOT_FOUND, format!("there is no {}", uri.path())))
            .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not allow that method"))
            .with_state(api.clone());
        Self { api, routes, loopback: listen.is_loopback() }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        guard::check_host(request.headers(), self.loopback)?;
        let snapshot = Guard::into_inner(self.api.live.snapshot());
        let plan = &snapshot.runtime.plan.api;
        let origin = guard::check_origin(request.method(), request.headers(), &plan.origins)?;
        let preflight = request.method() == Method::OPTIONS && request.headers().contains_key("access-control-request-method");
        let mut response = if preflight {
            allow_methods("GET, POST, DELETE")
        } else {
            let open = openapi::OPEN_TO_ALL.contains(&request.uri().path());
            let allowed = if open { Ok(()) } else { guard::check_token(request.headers(), plan.token.as_ref()) };
            match allowed.and_then(|()| check_kind(request.method(), request.headers())) {
                Err(problem) => problem.into_response(),
                Ok(()) => self.routes.clone().call(request.map(Body::new)).await.unwrap_or_else(|never| match never {}),
            }
        };
        if let Some(origin) = origin {
            name_origin(response.headers_mut(), origin);
        }
        Ok(response)
    }
}

impl Serve for ApiRoutes {
    async fn serve(self: Arc<Self>, request: Request<Incoming>, _: SocketAddr) -> Served {
        let mut response = self.answer(request).await.unwrap_or_else(IntoResponse::into_response);
        response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        response.into()
    }
}

/// Every call. A handler carries its own description, so no call can be without one.
fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(publish::publish))
        .routes(routes!(live::sources))
        .routes(routes!(publish::source))
        .routes(routes!(history::history))
        .routes(routes!(live::channels))
        .routes(routes!(live::one_channel))
        .routes(routes!(position::history))
        .routes(routes!(position::members))
        .routes(routes!(events::events))
        .routes(routes!(connections::connections))
        .routes(routes!(connections::one_connection, connections::close))
        .routes(routes!(sessions::sessions, sessions::begin))
        .routes(routes!(sessions::one_session, sessions::end))
        .routes(routes!(live::routes))
        .routes(routes!(live::plugins))
        .routes(routes!(config::config))
        .routes(routes!(config::reload))
        .routes(routes!(stats::stats))
        .routes(routes!(live::healthz))
        .routes(routes!(live::readyz))
        .routes(routes!(live::metrics))
        .routes(routes!(openapi::openapi))
        .routes(routes!(docs::docs))
}

/// The default number of entries in a page.
const LIMIT_DEFAULT: usize = 100;

/// The answer of a call.
type Answer = Result<Response<Body>, Problem>;

/// `200` with JSON.
fn ok(body: &impl Serialize) -> Answer {
    Ok(json(StatusCode::OK, Json::of(body).as_str().to_owned()))
}

/// The one variable part of a path.
struct Part(String);

impl<S: Send + Sync> FromRequestParts<S> for Part {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(name) = Path::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "a part of the path is not UTF-8"))?;
        Ok(Self(name))
    }
}
