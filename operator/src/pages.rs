//! What the operator shows of itself to people.

use std::time::SystemTime;

use serde_json::json;
use underpass_discovery::wire::ResourceType;
use underpass_runtime::admin::{Pages, json};

use crate::app::Running;

impl Running {
    /// Debugging pages: `/problems` with files that are not taken, `/subscribers` with how far each has come.
    #[must_use]
    pub fn pages(&self) -> Pages {
        let (objects, publisher) = (self.objects.clone(), self.publisher.clone());
        let problems = move |_| {
            let snapshot = objects.borrow().clone();
            async move {
                let problems = snapshot.problems.iter().map(|problem| {
                    json!({
                        "of": problem.origin.to_string(),
                        "in_force": if problem.is_lost { "nothing" } else { "its last good state" },
                        "line": problem.error.line(),
                        "field": problem.error.field(),
                        "reason": problem.error.reason(),
                        "message": problem.error.to_string(),
                    })
                });
                let problems: Vec<_> = problems.collect();
                json(json!({ "problems": problems, "ignored": *snapshot.ignored }).to_string())
            }
        };
        let subscribers = move |_| {
            let publisher = publisher.clone();
            async move {
                let subscribers = publisher.subscribers().into_iter().map(|subscriber| {
                    json!({
                        "node": &*subscriber.name,
                        "id": subscriber.node_id,
                        "connected_seconds": seconds_since(subscriber.since),
                        "answered": subscriber.answered,
                        "refusal": subscriber.refusal.map(|refusal| refusal.message),
                    })
                });
                let subscribers: Vec<_> = subscribers.collect();
                let resources = publisher.count(ResourceType::Address);
                let page =
                    json!({ "version": publisher.version(), "resources": resources, "subscribers": subscribers });
                json(page.to_string())
            }
        };
        let get = http::Method::GET;
        Pages::new().page(get.clone(), "/problems", problems).page(get, "/subscribers", subscribers)
    }
}

fn seconds_since(time: SystemTime) -> u64 {
    SystemTime::now().duration_since(time).unwrap_or_default().as_secs()
}
