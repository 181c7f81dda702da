//! The REST interface: the application's door. Who may come in at all is decided first, the same for every call.

mod asked;
mod history;
mod live;
mod publish;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router as Routes;
use axum::body::Body;
use axum::http::header::HeaderValue;
use axum::http::{Method, Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::http::guard;
use crate::http::listen::Serve;
use crate::http::problem::Problem;
use crate::http::site::{allow_methods, name_origin};
use crate::model::fault::Flaw;
use crate::router::Router;
use crate::routing::paths::parse_query;

/// What the calls share.
pub struct Api {
    router: Arc<Router>,
    stop: CancellationToken,
    recent: publish::RecentIds,
    exports: Arc<Semaphore>,
}

/// The REST interface on its listener.
pub struct ApiSite {
    api: Arc<Api>,
    routes: Routes,
    loopback: bool,
}

impl ApiSite {
    /// All calls. `stop` is what makes the server not ready.
    pub fn new(router: Arc<Router>, stop: CancellationToken) -> Self {
        let loopback = router.context.runtime.plan.api.listen.is_loopback();
        let api =
            Arc::new(Api { router, stop, recent: publish::RecentIds::default(), exports: Arc::new(Semaphore::new(history::EXPORTS_MAX)) });
        let routes = Routes::new()
            .route("/api/publish", post(publish::publish))
            .route("/api/sources", get(live::sources))
            .route("/api/sources/{name}", post(publish::source))
            .route("/api/history", get(history::history))
            .route("/api/channels", get(live::channels))
            .route("/api/channels/{name}", get(live::one_channel))
            .route("/api/connections", get(live::connections))
            .route("/api/connections/{id}", get(live::one_connection))
            .route("/api/routes", get(live::routes))
            .route("/api/plugins", get(live::plugins))
            .route("/api/stats", get(live::stats))
            .route("/healthz", get(live::healthz))
            .route("/readyz", get(live::readyz))
            .route("/metrics", get(live::metrics))
            .fallback(async |uri: Uri| Problem::new(StatusCode::NOT_FOUND, format!("there is no {}", uri.path())))
            .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method"))
            .with_state(api.clone());
        Self { api, routes, loopback }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        guard::check_host(request.headers(), self.loopback)?;
        let plan = &self.api.router.context.runtime.plan.api;
        let origin = guard::check_origin(request.method(), request.headers(), &plan.origins)?;
        let preflight = request.method() == Method::OPTIONS && request.headers().contains_key("access-control-request-method");
        let mut response = if preflight {
            allow_methods("GET, POST, DELETE")
        } else {
            let health = matches!(request.uri().path(), "/healthz" | "/readyz");
            let allowed = if health { Ok(()) } else { guard::check_token(request.headers(), plan.token.as_ref()) };
            match allowed {
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

impl Serve for ApiSite {
    async fn serve(self: Arc<Self>, request: Request<Incoming>, _: SocketAddr) -> Response<Body> {
        let mut response = self.answer(request).await.unwrap_or_else(IntoResponse::into_response);
        response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        response
    }
}

/// The query parameters of a call. One that the call does not know is an error: a misspelt filter must not answer with everything.
#[derive(Debug)]
struct Parameters(Vec<(Box<str>, Box<str>)>);

impl Parameters {
    fn of(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let all = uri.query().map(parse_query).unwrap_or_default();
        let mut flaws = Vec::new();
        for (i, (name, _)) in all.iter().enumerate() {
            let shown: String = name.chars().take(100).collect();
            if !known.contains(&&**name) {
                let there =
                    if known.is_empty() { "this call takes no parameters".to_owned() } else { format!("there is {}", known.join(", ")) };
                flaws.push(Flaw { path: shown, message: format!("unknown parameter; {there}") });
            } else if all[..i].iter().any(|(earlier, _)| earlier == name) {
                flaws.push(Flaw { path: shown, message: "given twice".into() });
            }
        }
        if flaws.is_empty() {
            Ok(Self(all))
        } else {
            Err(Problem::new(StatusCode::BAD_REQUEST, "the query is not what this call takes").errors(flaws))
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        crate::model::view::lookup(&self.0, name)
    }

    fn wrong(name: &str, message: &str) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, format!("{name}: {message}"))
            .errors(vec![Flaw { path: name.into(), message: message.into() }])
    }
}
