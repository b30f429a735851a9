//! Signed components end to end: with a key in the manifest, nothing runs that it hasn't signed, whoever brings it and
//! whenever.

use std::fs;
use std::io::Cursor;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_tests::berth::{Berth, Manifest};
use berth_tests::swaps::{Caller, Operator, Site, WATCH, digest, greeting, hello, sha256};
use berth_tests::wire::{Response, is};
use minisign::KeyPair;
use serde_json::json;

use crate::swap_served::FILE;

const SIGNATURE: &str = "hello.wasm.minisig";

/// Somebody who signs.
struct Signer(KeyPair);

impl Signer {
    fn new() -> Self {
        Self(KeyPair::generate_unencrypted_keypair().unwrap())
    }

    /// As in the manifest.
    fn public(&self) -> String {
        self.0.pk.to_base64()
    }

    /// As minisign prints it.
    fn number(&self) -> String {
        let digits = self.0.pk.keynum().iter().rev();
        digits.map(|byte| format!("{byte:02X}")).collect()
    }

    /// The text of a `.minisig` file.
    fn sign(&self, bytes: &[u8]) -> String {
        let comment = Some("timestamp:1795845644\tfile:hello.wasm");
        minisign::sign(Some(&self.0.pk), &self.0.sk, Cursor::new(bytes), comment, None)
            .unwrap()
            .into_string()
    }

    /// A component and its signature, where a plugin's file is.
    fn publish(&self, site: &Site, bytes: &[u8]) {
        site.replace(SIGNATURE, self.sign(bytes).as_bytes());
        site.replace(FILE, bytes);
    }
}

/// Whose signature a host wants: one key for all plugins.
fn trusting(site: &Site, signer: &Signer) -> Manifest {
    Manifest::new()
        .raw(WATCH)
        .raw(&format!("[signatures]\npublic_keys = [{:?}]", signer.public()))
        .handler_file("hello", &site.at(FILE), "")
}

#[track_caller]
fn serves(berth: &Berth, number: u32) {
    let answer = berth.get("/hello/Ada");
    assert_eq!((answer.status, answer.text()), (200, greeting(number, "Ada")));
}

#[track_caller]
fn deploy(operator: &Operator, bytes: &[u8], signature: Option<&str>) -> Response {
    let signature = signature.map(|text| STANDARD.encode(text));
    let headers: Vec<(&str, &str)> = signature
        .iter()
        .map(|text| ("berth-signature", text.as_str()))
        .collect();
    operator.deploy("hello", "", &headers, bytes)
}

#[test]
fn unsigned_component_is_refused_at_the_start_and_served_once_it_is_signed() {
    let (site, ada) = (Site::new(), Signer::new());
    site.put(FILE, &hello(1));
    let berth = site.start(&trusting(&site, &ada));
    is(&berth.get("/hello/Ada"), 503, "plugin-unavailable");
    let operator = Operator::of(&berth);
    let fault = operator.plugin("hello")["fault"].clone();
    assert_eq!(fault["code"], "signature");
    let says = "the component isn't signed: there is no `.minisig` file beside it";
    assert!(fault["detail"].as_str().unwrap().contains(says), "{fault}");
    // The signature alone is a reason to look again.
    site.put(SIGNATURE, ada.sign(&hello(1)).as_bytes());
    let event = operator.event(0, "hello", "swapped");
    assert_eq!(event["signedBy"], ada.number(), "{event:#}");
    serves(&berth, 1);
    assert_eq!(operator.plugin("hello")["signedBy"], ada.number());
}

#[test]
fn component_and_signature_that_are_saved_one_after_the_other_are_one_swap() {
    let (site, ada) = (Site::new(), Signer::new());
    ada.publish(&site, &hello(1));
    let berth = site.start(&trusting(&site, &ada));
    let operator = Operator::of(&berth);
    let caller = Caller::start(berth.address, "/hello/Ada");
    caller.sees(&greeting(1, "Ada"));
    for number in 2..8 {
        let before = operator.last();
        let bytes = hello(number);
        let signature = ada.sign(&bytes);
        let started = Instant::now();
        match number % 2 {
            // As `minisign -Sm` after a build.
            0 => {
                site.put(FILE, &bytes);
                site.put(SIGNATURE, signature.as_bytes());
            }
            _ => {
                site.put(SIGNATURE, signature.as_bytes());
                site.put(FILE, &bytes);
            }
        }
        let took = started.elapsed();
        let event = operator.event(before, "hello", "swapped");
        assert_eq!(
            (&event["to"], &event["signedBy"]),
            (&json!(digest(&bytes)), &json!(ada.number())),
            "{event:#}"
        );
        caller.sees(&greeting(number, "Ada"));
        // Half a second is waited for the second of both; a test that is held up for longer proves nothing.
        if took < Duration::from_millis(400) {
            assert_eq!(operator.kinds(before, "hello"), ["swapped"]);
        }
    }
    let greetings: Vec<String> = (1..8).map(|number| greeting(number, "Ada")).collect();
    caller
        .stop()
        .only(&greetings.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn what_is_not_signed_by_a_trusted_key_is_refused_while_the_old_version_serves() {
    let (site, ada, eve) = (Site::new(), Signer::new(), Signer::new());
    ada.publish(&site, &hello(1));
    let berth = site.start(&trusting(&site, &ada));
    let operator = Operator::of(&berth);
    let caller = Caller::start(berth.address, "/hello/Ada");
    let both = |bytes: &[u8], signature: Option<String>| {
        match signature {
            Some(text) => site.replace(SIGNATURE, text.as_bytes()),
            None => fs::remove_file(site.at(SIGNATURE)).unwrap(),
        }
        site.replace(FILE, bytes);
    };
    let altered = "the signature doesn't fit the component: one of them was changed";
    let unknown = format!(
        "signed with the key {}, which is not among those that are trusted here ({})",
        eve.number(),
        ada.number()
    );
    let cases: [(&str, &[u8], Option<String>, &str); 5] = [
        ("altered", &hello(2), Some(ada.sign(&hello(3))), altered),
        ("of somebody else", &hello(3), Some(eve.sign(&hello(3))), &unknown),
        ("unsigned", &hello(4), None, "the component isn't signed"),
        (
            "no signature",
            &hello(5),
            Some("signed, Ada".to_owned()),
            "is not a signature of minisign",
        ),
        // The compiler doesn't see what nobody vouches for.
        (
            "no component",
            b"no component",
            Some(eve.sign(b"no component")),
            &unknown,
        ),
    ];
    for (what, bytes, signature, says) in cases {
        let before = operator.last();
        both(bytes, signature);
        let event = operator.event(before, "hello", "refused");
        assert_eq!(event["code"], "signature", "{what}: {event:#}");
        assert_eq!(event["to"], digest(bytes), "{what}: {event:#}");
        let reason = event["reason"].as_str().unwrap();
        assert!(reason.contains(says), "{what}: {reason:?} says {says:?}");
        assert_eq!(operator.kinds(before, "hello"), ["refused"], "{what}");
    }
    assert_eq!(operator.serves("hello"), digest(&hello(1)));
    let before = operator.last();
    both(&hello(6), Some(ada.sign(&hello(6))));
    operator.event(before, "hello", "swapped");
    caller.sees(&greeting(6, "Ada"));
    caller.stop().only(&[&greeting(1, "Ada"), &greeting(6, "Ada")]);
}

#[test]
fn deployed_component_brings_its_signature_and_a_restart_verifies_it_again() {
    let (site, ada, eve) = (Site::new(), Signer::new(), Signer::new());
    ada.publish(&site, &hello(1));
    let manifest = trusting(&site, &ada);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    let refused = |answer: Response, says: &str| {
        assert_eq!(answer.code(), "signature", "{}", answer.text());
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(says), "{detail:?} says {says:?}");
    };
    refused(deploy(&operator, &hello(2), None), "the component isn't signed");
    refused(
        deploy(&operator, &hello(2), Some(&eve.sign(&hello(2)))),
        "is not among those that are trusted here",
    );
    refused(
        deploy(&operator, &hello(2), Some(&ada.sign(&hello(3)))),
        "the signature doesn't fit",
    );
    let answer = operator.deploy("hello", "", &[("berth-signature", "?")], &hello(2));
    assert_eq!(answer.status, 400, "{}", answer.text());
    serves(&berth, 1);
    let answer = deploy(&operator, &hello(2), Some(&ada.sign(&hello(2))));
    assert_eq!(
        (answer.status, &answer.json()["signedBy"]),
        (200, &json!(ada.number())),
        "{}",
        answer.text()
    );
    serves(&berth, 2);

    let berth = site.restart(berth, &manifest);
    serves(&berth, 2);
    let plugin = Operator::of(&berth).plugin("hello");
    assert_eq!(plugin["signedBy"], ada.number(), "{plugin:#}");
    berth.stop();

    // Who can write to the folder of the kept versions can't choose what serves.
    let kept = site.at(&format!(
        ".berth/plugins/hello/{}.wasm.minisig",
        sha256(&hello(2))
    ));
    fs::write(&kept, eve.sign(&hello(2))).unwrap();
    let berth = site.start(&manifest);
    serves(&berth, 1);
    berth.logged("why the kept version isn't served", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN"
            && message.contains("is kept and can't be served, so the file is")
            && message.contains("is not among those that are trusted here")
    });
}

#[test]
fn rollback_goes_back_to_what_is_still_trusted_only() {
    let (site, ada, bob) = (Site::new(), Signer::new(), Signer::new());
    ada.publish(&site, &hello(1));
    let both = Manifest::new()
        .raw(WATCH)
        .raw(&format!(
            "[signatures]\npublic_keys = [{:?}, {:?}]",
            ada.public(),
            bob.public()
        ))
        .handler_file("hello", &site.at(FILE), "");
    let berth = site.start(&both);
    let operator = Operator::of(&berth);
    bob.publish(&site, &hello(2));
    let event = operator.event(0, "hello", "swapped");
    assert_eq!(event["signedBy"], bob.number(), "{event:#}");
    // Ada's key has leaked.
    let berth = site.restart(berth, &trusting(&site, &bob));
    serves(&berth, 2);
    let answer = Operator::of(&berth).post("/admin/plugins/hello/rollback", &json!({}));
    assert_eq!(answer.code(), "signature", "{}", answer.text());
    serves(&berth, 2);
    // The same while it serves: a key that goes takes what it has signed with it, at the next change.
    let berth = site.restart(berth, &both);
    let answer = Operator::of(&berth).post("/admin/plugins/hello/rollback", &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    serves(&berth, 1);
}

#[test]
fn key_of_a_plugin_stands_in_the_place_of_those_of_all() {
    let (site, ada, bob) = (Site::new(), Signer::new(), Signer::new());
    ada.publish(&site, &hello(1));
    for name in ["other.wasm", "free.wasm"] {
        site.put(name, &hello(2));
    }
    site.put("other.wasm.minisig", bob.sign(&hello(2)).as_bytes());
    let manifest = trusting(&site, &ada)
        .handler_file(
            "other",
            &site.at("other.wasm"),
            &format!("public_keys = [{:?}]", bob.public()),
        )
        .handler_file("free", &site.at("free.wasm"), "public_keys = []");
    let berth = site.start(&manifest);
    serves(&berth, 1);
    let operator = Operator::of(&berth);
    assert_eq!(berth.get("/other/Ada").text(), greeting(2, "Ada"));
    assert_eq!(berth.get("/free/Ada").text(), greeting(2, "Ada"));
    let signers = ["hello", "other", "free"].map(|plugin| operator.plugin(plugin)["signedBy"].clone());
    assert_eq!(signers, [json!(ada.number()), json!(bob.number()), json!(null)]);
    // Ada's signature is none for the other plugin.
    site.put("other.wasm.minisig", ada.sign(&hello(3)).as_bytes());
    site.replace("other.wasm", &hello(3));
    let event = operator.event(0, "other", "refused");
    assert_eq!(event["code"], "signature", "{event:#}");
    assert_eq!(berth.get("/other/Ada").text(), greeting(2, "Ada"));
}

/// Whoever can write to the folder can put anything there.
#[test]
fn signature_that_is_no_file_holds_up_nothing() {
    let (site, ada) = (Site::new(), Signer::new());
    site.put(FILE, &hello(1));
    let made = Command::new("mkfifo").arg(site.at(SIGNATURE)).status().unwrap();
    assert!(made.success());
    let berth = site.start(&trusting(&site, &ada));
    let operator = Operator::of(&berth);
    let fault = operator.plugin("hello")["fault"].clone();
    assert!(
        fault["detail"]
            .as_str()
            .unwrap()
            .contains("can't be read: it is not a regular file"),
        "{fault}"
    );
    ada.publish(&site, &hello(3));
    operator.event(0, "hello", "swapped");
    serves(&berth, 3);
    let before = operator.last();
    std::os::unix::fs::symlink("/dev/zero", site.at("zero")).unwrap();
    fs::rename(site.at("zero"), site.at(SIGNATURE)).unwrap();
    site.replace(FILE, &hello(4));
    let event = operator.event(before, "hello", "refused");
    assert_eq!(event["code"], "signature", "{event:#}");
    serves(&berth, 3);
}
