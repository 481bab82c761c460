use serde_json::{Value, json};
use underpass_objects::testing::FakeApiServer;

use super::*;

const AUDIENCE: &str = "underpass";

fn options() -> ReviewOptions {
    ReviewOptions { audience: AUDIENCE.to_owned(), accounts: vec!["underpass-system/underpass-nodeproxy".to_owned()] }
}

/// What the API server says of a node proxy's token; `change` makes something else of it.
fn status(change: impl FnOnce(&mut Value)) -> Value {
    let mut status = json!({
        "authenticated": true,
        "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:underpass-system:underpass-nodeproxy",
            "extra": {
                "authentication.kubernetes.io/node-name": ["node-a"],
                "authentication.kubernetes.io/pod-name": ["proxy-x"],
                "authentication.kubernetes.io/pod-uid": ["uid-x"],
            },
        },
    });
    change(&mut status);
    status
}

fn claim<'a>(status: &'a mut Value, name: &str) -> &'a mut Value {
    &mut status["user"]["extra"][format!("authentication.kubernetes.io/{name}")]
}

fn forget(status: &mut Value, name: &str) {
    status["user"]["extra"].as_object_mut().unwrap().remove(&format!("authentication.kubernetes.io/{name}"));
}

#[test]
fn only_a_pod_of_a_node_proxys_account_with_a_token_for_us_is_a_node() {
    let decide = |change: &dyn Fn(&mut Value)| {
        bound_pod(&serde_json::from_value(status(change)).unwrap(), &options()).map(|bound| bound.node)
    };
    let node = NodeName::new("node-a");
    let account = |name: &str| Err(Unauthenticated::NotANode(name.to_owned()));
    assert_eq!(decide(&|_| ()), Ok(node));
    assert_eq!(decide(&|status| forget(status, "node-name")), Ok(None), "an older API server");
    let unknown = Err(Unauthenticated::UnknownToken);
    assert_eq!(decide(&|status| status["authenticated"] = false.into()), unknown);
    assert_eq!(decide(&|status| *status = json!({})), unknown);
    assert_eq!(decide(&|status| status["audiences"] = json!(["https://kubernetes.default.svc"])), unknown);
    assert_eq!(decide(&|status| status["audiences"] = Value::Null), unknown);
    for other in [
        "system:serviceaccount:shop:underpass-nodeproxy",
        "system:serviceaccount:underpass-system:web",
        "system:node:node-a",
    ] {
        assert_eq!(decide(&|status| status["user"]["username"] = other.into()), account(other));
    }
    let unbound = Err(Unauthenticated::Unbound);
    assert_eq!(decide(&|status| forget(status, "pod-name")), unbound, "a token of no pod");
    assert_eq!(decide(&|status| *claim(status, "pod-uid") = json!([])), unbound);
    assert_eq!(decide(&|status| *claim(status, "pod-uid") = json!(["one", "two"])), unbound);
    assert_eq!(decide(&|status| *claim(status, "node-name") = json!(["Not A Node"])), unbound);
    assert_eq!(decide(&|status| status["user"]["extra"] = Value::Null), unbound);
}

/// An API server that knows the token `good`, and says of it what the test wants.
async fn server(said: Value) -> FakeApiServer {
    let server = FakeApiServer::start().await.unwrap();
    server.on_create("tokenreviews", move |mut review| {
        let is_good = review["spec"]["token"] == "good" && review["spec"]["audiences"] == json!([AUDIENCE]);
        review["status"] = if is_good { said.clone() } else { json!({ "authenticated": false }) };
        // The real one keeps no reviews either; here each needs a name of its own.
        review["metadata"] = json!({ "generateName": "review-" });
        review
    });
    server
}

async fn caller(reviews: &Reviews, token: &str) -> Result<String, Unauthenticated> {
    reviews.prepare(token).await;
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
    reviews.authenticate(&metadata).map(|node| node.to_string())
}

fn questions(server: &FakeApiServer) -> usize {
    server.requests().iter().filter(|request| request.contains("tokenreviews")).count()
}

#[tokio::test]
async fn one_question_answers_many_calls_good_or_bad() {
    let server = server(status(|_| ())).await;
    let reviews = Reviews::new(server.client(), options());
    for _ in 0..5 {
        assert_eq!(caller(&reviews, "good").await, Ok("node-a".to_owned()));
    }
    assert_eq!(questions(&server), 1);
    for _ in 0..5 {
        assert_eq!(caller(&reviews, "forged").await, Err(Unauthenticated::UnknownToken));
    }
    assert_eq!(questions(&server), 2);
}

#[tokio::test]
async fn without_an_answer_nobody_is_let_in_and_the_next_call_asks_again() {
    let server = server(status(|_| ())).await;
    let reviews = Reviews::new(server.client(), options());
    server.refuse("tokenreviews", Some(500));
    assert_eq!(caller(&reviews, "good").await, Err(Unauthenticated::NotReviewed));
    server.refuse("tokenreviews", None);
    assert_eq!(caller(&reviews, "good").await, Ok("node-a".to_owned()));
    server.refuse("tokenreviews", Some(500));
    assert_eq!(caller(&reviews, "good").await, Ok("node-a".to_owned()), "what is known stays so for a while");
}

#[tokio::test]
async fn an_api_server_that_names_no_node_is_asked_where_the_pod_runs() {
    let server = server(status(|status| forget(status, "node-name"))).await;
    let reviews = Reviews::new(server.client(), options());
    let pod = |uid: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "proxy-x", "namespace": "underpass-system", "uid": uid },
            "spec": { "nodeName": "node-b", "containers": [] },
        })
    };
    server.put(pod("uid-of-the-next-pod"));
    assert_eq!(caller(&reviews, "good").await, Err(Unauthenticated::Unbound), "another pod of the same name");
    server.put(pod("uid-x"));
    let reviews = Reviews::new(server.client(), options());
    assert_eq!(caller(&reviews, "good").await, Ok("node-b".to_owned()));
}

#[test]
fn forged_tokens_push_no_good_one_out() {
    let mut answers = Answers::default();
    let node = NodeName::new("node-a").unwrap();
    answers.put(digest("good"), Ok(node.clone()));
    for number in 0..3 * MOST_BAD {
        answers.put(digest(&number.to_string()), Err(Unauthenticated::UnknownToken));
        assert!(answers.bad.len() <= MOST_BAD);
    }
    assert_eq!(answers.find(&digest("good"), Duration::ZERO), Some(Ok(node)));
}

#[tokio::test(start_paused = true)]
async fn answers_grow_old() {
    let mut answers = Answers::default();
    let node = NodeName::new("node-a").unwrap();
    answers.put(digest("good"), Ok(node.clone()));
    answers.put(digest("bad"), Err(Unauthenticated::Unbound));
    tokio::time::advance(BAD).await;
    assert_eq!(answers.find(&digest("bad"), Duration::ZERO), None);
    assert_eq!(answers.find(&digest("good"), Duration::ZERO), Some(Ok(node.clone())));
    tokio::time::advance(GOOD).await;
    assert_eq!(answers.find(&digest("good"), Duration::ZERO), None);
    assert_eq!(answers.find(&digest("good"), GRACE), Some(Ok(node)), "found fresh a moment ago");
}
