//! The two databases. A test of what the log promises is written once and holds on both.

use std::sync::Arc;

use uuid::Uuid;

use super::postgres;

/// Names the PostgreSQL server that tests may make databases on; `tests/postgres.sh` starts one.
const SERVER: &str = "TRAMLINE_TEST_POSTGRES";

/// Which database a server keeps its log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A file in the server's folder.
    Sqlite,
    /// A database of its own on the test's server.
    Postgres,
}

/// A PostgreSQL database that ends with the last who holds it.
pub struct Database {
    server: String,
    name: String,
}

impl Database {
    /// A new one.
    pub fn create() -> Arc<Self> {
        let server = std::env::var(SERVER).unwrap_or_else(|_| panic!("{SERVER} names no server; tests/postgres.sh starts one"));
        let name = format!("t{}", Uuid::new_v4().simple());
        postgres::execute(&server, &format!("CREATE DATABASE {name}"));
        Arc::new(Self { server, name })
    }

    /// Its address.
    pub fn url(&self) -> String {
        let (base, _) = self.server.rsplit_once('/').expect("an address that ends with a database");
        format!("{base}/{}", self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        postgres::execute(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

/// One test body for both databases: `on_both! { async fn name(backend) { … } }` makes the tests `name::sqlite` and
/// `name::postgres`.
macro_rules! on_both {
    ($($(#[$attribute:meta])* async fn $name:ident($backend:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            $(#[$attribute])*
            async fn holds($backend: $crate::support::Backend) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                holds($crate::support::Backend::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs PostgreSQL"]
            async fn postgres() {
                holds($crate::support::Backend::Postgres).await;
            }
        }
    )*};
}
pub(crate) use on_both;
