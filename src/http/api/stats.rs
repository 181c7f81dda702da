//! `GET /api/stats`: the numbers, now.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;

use crate::http::api::openapi::BadQuery;
use crate::http::api::{Answer, Api, Parameters, ok};
use crate::http::measure::{self, Stats};
use crate::model::Now;

/// Read the numbers
#[utoipa::path(get, path = "/api/stats", tag = "state", responses((status = 200, description = "Now.", body = Stats), BadQuery))]
pub(super) async fn stats(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    ok(&measure::now(&api.router, Now::read()))
}
