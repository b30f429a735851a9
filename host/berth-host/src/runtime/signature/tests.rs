use std::io::Cursor;
use std::os::unix::fs::symlink;
use std::slice::from_ref;

use minisign::KeyPair;

use super::*;

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0and so on";

/// A pair that minisign made, and the same public key for the host.
fn pair() -> (KeyPair, PublicKey) {
    let pair = KeyPair::generate_unencrypted_keypair().unwrap();
    let key = PublicKey::parse(&pair.pk.to_base64()).unwrap();
    (pair, key)
}

fn sign(pair: &KeyPair, bytes: &[u8], comment: &str) -> String {
    minisign::sign(Some(&pair.pk), &pair.sk, Cursor::new(bytes), Some(comment), None)
        .unwrap()
        .into_string()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// From the documentation of minisign-verify: of the file "test".
const VECTOR_KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
const VECTOR: &str = "untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1633700835\tfile:test\tprehashed
wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==
";
/// The same file, signed by an older minisign.
const LEGACY: &str = "untrusted comment: signature from minisign secret key
RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=
trusted comment: timestamp:1555779966\tfile:test
QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==
";

#[test]
fn signature_of_minisign_itself_is_accepted() {
    let key = PublicKey::parse(VECTOR_KEY).unwrap();
    assert_eq!(key.id(), "E7620F1842B4E81F");
    let signed = verify(from_ref(&key), b"test", Some(VECTOR)).unwrap();
    assert_eq!(
        signed,
        Signed {
            key_id: "E7620F1842B4E81F".to_owned(),
            trusted_comment: "timestamp:1633700835 file:test prehashed".to_owned(),
        }
    );
    let altered = SignatureFault::Altered { id: key.id() };
    assert_eq!(verify(&[key], b"Test", Some(VECTOR)), Err(altered));
}

#[test]
fn legacy_signature_is_told_apart_and_refused() {
    let key = PublicKey::parse(VECTOR_KEY).unwrap();
    // It is a good one.
    let signature = Signature::decode(LEGACY).unwrap();
    assert!(key.key.verify(b"test", &signature, true).is_ok());
    assert_eq!(
        verify(from_ref(&key), b"test", Some(LEGACY)),
        Err(SignatureFault::Legacy)
    );
    // Called prehashed, it doesn't verify: as if the hash were the file.
    let renamed = LEGACY.replace("\nRWQ", "\nRUQ");
    assert_eq!(
        verify(from_ref(&key), b"test", Some(&renamed)),
        Err(SignatureFault::Altered { id: key.id() })
    );
}

#[test]
fn any_of_the_keys_may_have_signed() {
    let (one, its) = pair();
    let (other, others) = pair();
    let keys = [its, others.clone()];
    for pair in [&one, &other] {
        let signed = verify(&keys, COMPONENT, Some(&sign(pair, COMPONENT, "good"))).unwrap();
        assert_eq!(signed.trusted_comment, "good");
    }
    let said = verify(from_ref(&others), COMPONENT, Some(&sign(&one, COMPONENT, "good"))).unwrap_err();
    assert_eq!(
        said,
        SignatureFault::UnknownKey {
            id: keys[0].id(),
            known: vec![others.id()]
        }
    );
    assert!(
        said.to_string()
            .contains(&format!("trusted here ({})", others.id()))
    );
}

#[test]
fn without_keys_nothing_is_signed() {
    let (pair, _) = pair();
    let fault = verify(&[], COMPONENT, Some(&sign(&pair, COMPONENT, "good"))).unwrap_err();
    assert!(fault.to_string().contains("(there are none)"), "{fault}");
    assert_eq!(verify(&[], COMPONENT, None), Err(SignatureFault::Missing));
}

#[test]
fn key_with_the_number_of_a_trusted_one_can_not_sign_for_it() {
    let (one, its) = pair();
    let (mut other, others) = pair();
    // A number is chosen freely.
    let mut bytes = other.sk.to_bytes();
    let number = 2 + 2 + 2 + 32 + 8 + 8;
    bytes[number..number + ID].copy_from_slice(&its.id.0);
    other.sk = minisign::SecretKey::from_bytes(&bytes).unwrap();
    let forged = minisign::sign(None, &other.sk, Cursor::new(COMPONENT), None, None)
        .unwrap()
        .into_string();
    assert_eq!(
        verify(from_ref(&its), COMPONENT, Some(&forged)),
        Err(SignatureFault::Altered { id: its.id() })
    );
    // If both are trusted, the one that fits is found, in any order.
    let point = STANDARD.decode(other.pk.to_base64()).unwrap().split_off(2 + ID);
    let text = STANDARD.encode([ED25519, &its.id.0, &point].concat());
    let twin = PublicKey::parse(&text).unwrap();
    assert!(twin != its && twin != others && twin.id() == its.id());
    for keys in [[its.clone(), twin.clone()], [twin, its]] {
        assert!(verify(&keys, COMPONENT, Some(&forged)).is_ok());
        assert!(verify(&keys, COMPONENT, Some(&sign(&one, COMPONENT, ""))).is_ok());
    }
}

#[test]
fn every_change_of_component_or_signature_is_seen() {
    let (pair, key) = pair();
    let keys = [key.clone()];
    let text = sign(&pair, COMPONENT, "good");
    let altered = Err(SignatureFault::Altered { id: key.id() });
    for at in 0..COMPONENT.len() {
        let mut component = COMPONENT.to_vec();
        component[at] ^= 1;
        assert_eq!(verify(&keys, &component, Some(&text)), altered, "byte {at}");
    }
    for bytes in [&b""[..], &COMPONENT[1..], &[COMPONENT, b"\0"].concat()] {
        assert_eq!(verify(&keys, bytes, Some(&text)), altered);
    }
    assert_eq!(
        verify(&keys, COMPONENT, Some(&text.replace("good", "evil"))),
        altered
    );
    // Every byte of both signatures, and of what is before the first.
    for line in [1, 3] {
        let bytes = STANDARD.decode(&lines(&text)[line]).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let mut all = lines(&text);
            all[line] = STANDARD.encode(changed);
            let fault = verify(&keys, COMPONENT, Some(&all.join("\n"))).unwrap_err();
            match (line, at) {
                (1, 0 | 1) => assert!(matches!(fault, SignatureFault::Malformed(_)), "{fault}"),
                (1, 2..10) => assert!(matches!(fault, SignatureFault::UnknownKey { .. }), "{fault}"),
                _ => assert_eq!(Err(fault), altered, "line {line}, byte {at}"),
            }
        }
    }
}

#[test]
fn comment_of_another_signature_is_seen() {
    let (pair, key) = pair();
    let (old, new) = (
        lines(&sign(&pair, b"old", "for old")),
        lines(&sign(&pair, COMPONENT, "for new")),
    );
    let mixed = [&new[..2], &old[2..]].concat().join("\n");
    assert_eq!(
        verify(from_ref(&key), COMPONENT, Some(&mixed)),
        Err(SignatureFault::Altered { id: key.id() })
    );
}

#[test]
fn what_is_no_signature_is_told() {
    let (pair, key) = pair();
    let good = lines(&sign(&pair, COMPONENT, "good"));
    let cut = |n: usize| good[..n].join("\n");
    let with = |line: usize, text: &str| {
        let mut all = good.clone();
        all[line] = text.to_owned();
        all.join("\n")
    };
    let twice = STANDARD.decode(&good[1]).unwrap().repeat(2);
    let unknown = [b"XX".as_slice(), &[0; 72]].concat();
    let table = [
        (String::new(), "doesn't begin with"),
        ("\n\n\n\n".to_owned(), "doesn't begin with"),
        ("\0asm".to_owned(), "doesn't begin with"),
        (cut(1), "ends after the first line"),
        (cut(2), "damaged or not there"),
        (cut(3), "damaged or not there"),
        (with(0, "comment: x"), "doesn't begin with"),
        (with(1, "no base64!"), "second line is no base64"),
        (with(1, ""), "second line is no signature"),
        (with(1, &STANDARD.encode(twice)), "second line is no signature"),
        (
            with(1, &STANDARD.encode(&unknown)),
            "an algorithm that is not known",
        ),
        (with(2, "comment: good"), "damaged or not there"),
        (with(3, "no base64!"), "damaged or not there"),
        (with(3, "AAAA"), "damaged or not there"),
    ];
    for (text, why) in table {
        let fault = verify(from_ref(&key), COMPONENT, Some(&text)).unwrap_err();
        assert!(
            matches!(&fault, SignatureFault::Malformed(said) if said.contains(why)),
            "{text:?}: {fault}"
        );
    }
}

#[test]
fn line_ends_of_other_systems_and_lines_to_follow_do_no_harm() {
    let (pair, key) = pair();
    let keys = [key];
    let text = sign(&pair, COMPONENT, "good");
    for text in [
        text.replace('\n', "\r\n"),
        text.trim_end().to_owned(),
        format!("{text}\n\nand more\n"),
    ] {
        assert_eq!(
            verify(&keys, COMPONENT, Some(&text)).unwrap().trusted_comment,
            "good"
        );
    }
}

#[test]
fn huge_signature_is_not_read() {
    let (pair, key) = pair();
    let keys = [key];
    let room = usize::try_from(MAX_SIGNATURE).unwrap();
    let text = sign(&pair, COMPONENT, "good");
    let filled = format!("{text}{}", "x".repeat(room - text.len()));
    assert!(verify(&keys, COMPONENT, Some(&filled)).is_ok());
    let fault = verify(&keys, COMPONENT, Some(&(filled + "x"))).unwrap_err();
    assert_eq!(fault, SignatureFault::Malformed(TOO_LONG.to_owned()));
    assert_eq!(MAX_SIGNATURE, 32 * 1024, "as its sentence says");
}

#[test]
fn trusted_comment_can_not_forge_a_line_of_the_log() {
    let (pair, key) = pair();
    let keys = [key];
    let comment = |text: &str| {
        verify(&keys, COMPONENT, Some(&sign(&pair, COMPONENT, text)))
            .unwrap()
            .trusted_comment
    };
    assert_eq!(
        comment("a\tb\u{1b}[2J\u{7f}\u{202e}c\u{2028}d\u{85}é"),
        "a b\u{fffd}[2J\u{fffd}\u{fffd}c\u{fffd}d\u{fffd}é"
    );
    assert_eq!(comment(&"x".repeat(8000)), "x".repeat(MAX_COMMENT));
    // Cut between two characters, not inside one.
    assert_eq!(
        comment(&format!("x{}", "é".repeat(500))),
        format!("x{}", "é".repeat(127))
    );
    assert_eq!(comment(""), "");
}

#[test]
fn public_key_is_parsed_and_anything_else_is_told_without_repeating_it() {
    let key = PublicKey::parse(&format!("  {VECTOR_KEY}\r\n")).unwrap();
    assert_eq!(key, PublicKey::parse(VECTOR_KEY).unwrap());
    let (pair, other) = pair();
    assert_ne!(key, other);
    let secret = STANDARD.encode(pair.sk.to_bytes());
    let of_point = |point: [u8; 32]| STANDARD.encode([ED25519, &[1; ID], &point].concat());
    let mut identity = [0; 32];
    identity[0] = 1;
    // y = 2 is on no point.
    let mut off_curve = [0; 32];
    off_curve[0] = 2;
    let file = format!("untrusted comment: minisign public key\n{VECTOR_KEY}\n");
    let mut of_other_kind = STANDARD.decode(VECTOR_KEY).unwrap();
    of_other_kind[1] = b'D';
    let table = [
        ("", "\"RW\" and 54 more"),
        ("hello", "no base64"),
        (file.as_str(), "second line of the .pub file"),
        (VECTOR_KEY.get(..54).unwrap(), "no base64"),
        (VECTOR_KEY.get(..52).unwrap(), "42 bytes"),
        (lines(VECTOR)[1].as_str(), "42 bytes"),
        (secret.as_str(), "this is a secret key"),
        (&of_point([0; 32]), "perhaps mistyped"),
        (&of_point(identity), "perhaps mistyped"),
        (&of_point(off_curve), "perhaps mistyped"),
        (&STANDARD.encode(of_other_kind), "begin with \"Ed\""),
    ]
    .map(|(text, why)| (text.to_owned(), why));
    for (text, why) in table {
        let said = PublicKey::parse(&text).unwrap_err();
        assert!(said.contains(why), "{text:?}: {said}");
        assert!(text.len() < 6 || !said.contains(&text), "{said}");
    }
}

#[test]
fn signature_lies_beside_the_component() {
    assert_eq!(
        file_of(Path::new("a/hello.wasm")),
        Path::new("a/hello.wasm.minisig")
    );
    assert_eq!(file_of(Path::new("hello")), Path::new("hello.minisig"));
}

#[test]
fn only_a_regular_file_of_bounded_size_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let component = folder.path().join("hello.wasm");
    let file = file_of(&component);
    let said = || read(&component).unwrap_err().to_string();
    assert_eq!(read(&component), Ok(None));
    std::fs::write(&file, VECTOR).unwrap();
    assert_eq!(read(&component), Ok(Some(VECTOR.to_owned())));
    std::fs::write(&file, b"\xff").unwrap();
    assert!(said().contains("no UTF-8 text"));
    File::create(&file).unwrap().set_len(MAX_SIGNATURE).unwrap();
    assert!(read(&component).is_ok());
    File::create(&file).unwrap().set_len(MAX_SIGNATURE + 1).unwrap();
    assert!(said().contains("more than 32 KiB"));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(said().contains("not a regular file"));
    std::fs::remove_dir(&file).unwrap();
    // It has no end.
    symlink("/dev/zero", &file).unwrap();
    assert!(said().starts_with(&format!("{}: ", file.display())) && said().contains("not a regular file"));
    std::fs::remove_file(&file).unwrap();
    // Nobody opens its other end.
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, Mode::RUSR | Mode::WUSR).unwrap();
    assert!(said().contains("not a regular file"));
    // A link that is followed, as in a volume of Kubernetes.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(folder.path().join("elsewhere"), VECTOR).unwrap();
    symlink("elsewhere", &file).unwrap();
    assert_eq!(read(&component), Ok(Some(VECTOR.to_owned())));
}
