//! A history that is switched off and on: no position is given twice, and what is stored can be recovered.

use super::*;

/// Publishes one event; gives its position, which no other event of the test may have.
async fn place(server: &Server, all: &mut HashSet<(String, u64)>, data: u32) -> (String, u64) {
    let event = server.publish(&json!({ "channel": "room:a", "data": data })).await;
    let place = (event["epoch"].as_str().unwrap().to_owned(), event["offset"].as_u64().unwrap());
    assert!(all.insert(place.clone()), "{place:?} was given before");
    place
}

/// What a client that has seen the channel up to a position gets of it.
async fn since(server: &Server, (epoch, offset): &(String, u64)) -> (Value, Vec<Value>) {
    let answer = server.get(&format!("/api/channels/room:a/history?since={offset}&epoch={epoch}")).await.json();
    let events = answer["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
    (answer["recovered"].clone(), events)
}

#[tokio::test]
async fn no_position_is_given_twice_whether_events_are_stored_or_not() {
    let (on, off) = (numbered(1), numbered(1).replace("{ history: true }", "{}"));
    let (mut all, mut stored) = (HashSet::new(), Vec::new());
    let mut server = setup(&on).embed();
    for round in 0..3 {
        for n in 0..2 {
            place(&server, &mut all, round).await;
            stored.push(json!(round));
            if n == 0 {
                become_(&server, &off).await;
                become_(&server, &on).await;
            }
        }
        become_(&server, &off).await;
        place(&server, &mut all, 0).await;
        if round == 1 {
            // It starts with the history off, too.
            server = server.stop().setup.embed();
            place(&server, &mut all, 0).await;
        }
        become_(&server, &on).await;
        place(&server, &mut all, round).await;
        stored.push(json!(round));
        server = server.stop().setup.embed();
    }
    let history = server.get("/api/history?channel=room:a&order=asc").await.json();
    assert_eq!(history["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect::<Vec<_>>(), stored);
}

#[tokio::test]
async fn stored_events_can_be_recovered_once_the_history_is_on_again() {
    let (on, off) = (numbered(1), numbered(1).replace("{ history: true }", "{}"));
    let mut all = HashSet::new();
    let server = setup(&on).embed();
    let first = place(&server, &mut all, 1).await;
    place(&server, &mut all, 2).await;
    become_(&server, &off).await;
    assert_eq!(since(&server, &first).await, (json!(false), vec![]));
    become_(&server, &on).await;
    assert_eq!(since(&server, &first).await, (json!(true), vec![json!(2)]));
    place(&server, &mut all, 3).await;
    assert_eq!(since(&server, &first).await, (json!(true), vec![json!(2), json!(3)]));
    // What is not stored ends the epoch; what comes behind it is no part of the old one.
    become_(&server, &off).await;
    let passing = place(&server, &mut all, 4).await;
    become_(&server, &on).await;
    let last = place(&server, &mut all, 5).await;
    assert_eq!(since(&server, &first).await, (json!(false), vec![]));
    let here = async |server: &Server| {
        assert_eq!(since(server, &(last.0.clone(), first.1)).await, (json!(false), vec![json!(5)]));
        assert_eq!(since(server, &passing).await, (json!(true), vec![json!(5)]));
    };
    here(&server).await;
    here(&server.stop().setup.embed()).await;
}
