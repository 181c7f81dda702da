//! Faults that only PostgreSQL has.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::plan::Secret;

async fn end_writer(base: &Base) {
    let sql = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
               WHERE l.locktype = 'advisory' AND d.datname = current_database()";
    base.stranger().await.run(sql).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn postgres_a_connection_that_is_lost_is_made_again() {
    Base::with_postgres(async |base| {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x")]).await;
        for n in 2..20 {
            end_writer(base).await;
            let ticket = append(&rig.store, event("a", n, 1, "x"));
            rig.healthy().await;
            let ticket = ticket.or_else(|_| append(&rig.store, event("a", n, 1, "x"))).unwrap();
            rig.store.committed(ticket).await.unwrap();
        }
        assert_eq!(places(base).await.len(), 19);
        // Even if nothing is published.
        end_writer(base).await;
        rig.degraded().await;
        rig.healthy().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn postgres_a_server_that_another_one_wrote_after_writes_no_more() {
    Base::with_postgres(async |base| {
        let first = Rig::of(base).await;
        first.write([event("a", 1, 1, "x")]).await;
        let mut db = base.stranger().await;
        // Nobody gets in again until the second one has.
        db.run("SELECT pg_advisory_lock(1)").await;
        end_writer(base).await;
        let second = loop {
            if let Ok((store, mut writer, _)) = Store::open(&base.plan, &Clock::default()).await {
                writer.begin(Policies::early(&[])).await.unwrap();
                break (store, tokio::spawn(writer.run(std::future::pending())));
            }
            end_writer(base).await;
        };
        while !first.degraded().await.contains("another process") {
            tokio::task::yield_now().await;
        }
        append(&second.0, event("a", 2, 1, "x")).unwrap();
        second.0.committed(second.0.ticket()).await.unwrap();
        second.1.abort();
        drop(second.0);
        while !first.degraded().await.contains("another server has written") {
            tokio::task::yield_now().await;
        }
        first.crash().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn postgres_refuses_what_it_cannot_hold_and_takes_the_rest() {
    Base::with_postgres(async |base| {
        let rig = Rig::of(base).await;
        let mut bad = event("a", 2, 1, "x");
        bad.new.kind = "nul\0".into();
        let bad = {
            append(&rig.store, event("a", 1, 1, "x")).unwrap();
            let ticket = append(&rig.store, bad).unwrap();
            append(&rig.store, event("a", 3, 1, "x")).unwrap();
            ticket
        };
        rig.store.committed(rig.store.ticket()).await.unwrap();
        assert!(rig.store.refused(bad, bad));
        assert_eq!(rig.store.state(), StoreState::Ok);
        assert_eq!(places(base).await.iter().map(|p| p.1).collect::<Vec<_>>(), [1, 3]);
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn postgres_that_is_read_only_says_so() {
    Base::with_postgres(async |base| {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x")]).await;
        let mut db = base.stranger().await;
        let set = |what| format!("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {what}', current_database()); END $$");
        db.run(&set("SET default_transaction_read_only = on")).await;
        end_writer(base).await;
        // Nothing is published: the check is enough.
        while &*rig.degraded().await != "PostgreSQL is read-only" {
            tokio::task::yield_now().await;
        }
        db.run("SET default_transaction_read_only = off").await;
        db.run(&set("RESET default_transaction_read_only")).await;
        rig.healthy().await;
        append(&rig.store, event("a", 2, 1, "x")).unwrap();
        rig.store.committed(rig.store.ticket()).await.unwrap();
        rig.stop().await;
    })
    .await;
}

/// Passes everything on, until a commit was answered: that answer is lost with the connection.
async fn forgetful(to: String) -> (u16, tokio::task::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut forgotten = 0;
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&to).await.unwrap();
            let mut commits = 0;
            let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            loop {
                tokio::select! {
                    read = client.read(&mut from_client) => match read {
                        Ok(read) if read > 0 => {
                            let said = &from_client[..read];
                            server.write_all(said).await.unwrap();
                            commits += said.windows(7).filter(|part| *part == b"COMMIT\0").count();
                        }
                        _ => break,
                    },
                    read = server.read(&mut from_server) => match read {
                        Ok(read) if read > 0 => {
                            let is_answer = from_server[..read].starts_with(b"C\0\0\0\x0bCOMMIT");
                            if is_answer && commits > 3 && forgotten < 3 {
                                forgotten += 1;
                                break;
                            }
                            client.write_all(&from_server[..read]).await.unwrap();
                        }
                        _ => break,
                    },
                }
            }
            if forgotten == 3 && listener.local_addr().is_err() {
                return forgotten;
            }
        }
    });
    (port, task)
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn postgres_a_commit_whose_answer_was_lost_is_not_repeated() {
    Base::with_postgres(async |base| {
        let DatabasePlan::Postgres(url) = &base.plan.database else { unreachable!() };
        let (user, rest) = url.0.rsplit_once('@').unwrap();
        let (host, name) = rest.split_once('/').unwrap();
        let (port, proxy) = forgetful(host.to_owned()).await;
        let plan = DatabasePlan::Postgres(Secret(format!("{user}@127.0.0.1:{port}/{name}").into())).into();
        let policies = Policies::early(&[]);
        let rig = Rig::open_with(&plan, Bounds::default(), policies.clone()).await;
        for n in 1..=20 {
            let ticket = loop {
                match append(&rig.store, event("a", n, 1, "x")) {
                    Ok(ticket) => break ticket,
                    Err(_) => rig.healthy().await,
                }
            };
            rig.store.append_points(vec![Point { kind: "k", name: "n".into(), metric: "m", minute_s: 60, delta: 1 }]);
            rig.store.committed(ticket).await.unwrap();
        }
        rig.stop().await;
        proxy.abort();
        assert_eq!(places(base).await.len(), 20);
        assert_eq!(channels(base).await, [line("a", 1, 20, 1, 0)]);
        assert_eq!(base.stranger().await.rows::<(i64,)>("SELECT total FROM series").await, [(20,)]);
        assert!(policies.trimmed.lock().is_empty());
    })
    .await;
}
