//! The same as [`crate::swap_times`] of the bundled `auth` policy, which is not loaded without a database.

use berth_tests::berth::Manifest;
use berth_tests::store::Store;
use berth_tests::swaps::{Operator, Site, WATCH, altered, built};
use berth_tests::wire::{Connection, head};

use crate::swap_times::save_each;

/// What it says to a request that it refuses without asking the database.
const DETAIL: &str = "The token is missing.";

fn detail(number: usize) -> String {
    format!("The token at {number:07}.")
}

#[test]
fn save_to_served_of_the_auth_policy() {
    let (site, store) = (Site::new(), Store::new());
    let version = |number| altered(&built("auth"), DETAIL, &detail(number));
    site.put("auth.wasm", &version(0));
    let file = site.at("auth.wasm");
    let manifest = Manifest::new().raw(WATCH).raw(&format!(
        "[plugins.auth]\ncomponent = {file:?}\npolicy = \"auth\"\n\
         grants = {{ sql = [\"identity\"], passwords = true, sessions = true, log = true }}"
    ));
    let berth = store.start(&manifest);
    let operator = Operator::with(berth.admin, &store.data());
    let versions: Vec<_> = (1..=20).map(version).collect();
    let mut connection = Connection::open(berth.address);
    let headers = [("content-type", "application/json")];
    let body = r#"{"token":""}"#;
    save_each((&berth, &operator), ("auth", &file), &versions, |number| {
        connection.send(head("POST", "/api/v1/auth/verify-email", &headers, body.len()) + body);
        let answer = connection.response("POST").unwrap();
        assert_eq!(answer.status, 400, "{}", answer.text());
        answer.text().contains(&detail(number + 1))
    });
}
