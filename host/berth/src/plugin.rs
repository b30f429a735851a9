//! `berth plugin`: the plugins of a running host, by its admin API.

mod event;
mod show;

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use berth_host::runtime::load::MAX_COMPONENT;
use berth_host::runtime::reload::canary::Share;
use berth_host::runtime::signature::MAX_SIGNATURE;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval_at};

use crate::args::{PluginArgs, PluginCommand};
use crate::check;
use crate::client::{Client, ClientError, Refusal, Sent};
use crate::text::{clean, escape, pretty, size};
use crate::{EXIT_FAILED, EXIT_FAULTY};

/// How often the progress of a deploy is drawn, and how long it must take to be drawn at all.
const DRAWN: Duration = Duration::from_millis(300);

/// Why a command could not be carried out.
struct Failed {
    /// For people.
    message: String,
    /// What the host answered, for programs.
    answer: Option<Value>,
    code: u8,
}

impl From<String> for Failed {
    fn from(message: String) -> Self {
        Self {
            message,
            answer: None,
            code: EXIT_FAILED,
        }
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        Self {
            answer: match error {
                ClientError::Refused(refusal) => Some(refusal.answer),
                _ => None,
            },
            ..message.into()
        }
    }
}

pub(crate) fn run(args: &PluginArgs) -> ExitCode {
    let spec = match check::host_of(&args.config) {
        Ok(spec) => spec,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(async { perform(&Client::new(&spec)?, args).await }),
        Err(error) => Err(format!("the network can't be used: {error}").into()),
    };
    match done {
        Ok(text) => check::write(&text, 0),
        Err(failed) => {
            if let (true, Some(answer)) = (args.json, &failed.answer) {
                check::write(&pretty(answer), 0);
            }
            eprintln!("berth: {}", failed.message);
            ExitCode::from(failed.code)
        }
    }
}

/// What is to be printed.
async fn perform(client: &Client, args: &PluginArgs) -> Result<String, Failed> {
    match &args.command {
        PluginCommand::List => {
            let answer = client.call(Method::GET, "/admin/plugins", None).await?;
            let plugins = answer.get("plugins").and_then(Value::as_array);
            Ok(match args.json {
                true => pretty(&answer),
                false => show::table(plugins.map_or(&[], Vec::as_slice)),
            })
        }
        PluginCommand::Show { plugin } => {
            let found = about(client, plugin, Method::GET, "", None).await?;
            Ok(match args.json {
                true => pretty(&found),
                false => show::lines(&found),
            })
        }
        PluginCommand::Deploy {
            plugin,
            file,
            canary,
            promote_after,
        } => {
            let component = Component::read(file)?;
            let trial = (*canary, *promote_after);
            let event = deploy(client, plugin, component, trial).await?;
            Ok(said(&event, args.json))
        }
        PluginCommand::Rollback { plugin, to } => {
            let to = to.as_ref().map_or_else(|| json!({}), |to| json!({ "to": to }));
            change(client, plugin, "/rollback", Some(&to), args.json).await
        }
        PluginCommand::Promote { plugin } => change(client, plugin, "/promote", None, args.json).await,
        PluginCommand::Disable { plugin } => change(client, plugin, "/disable", None, args.json).await,
        PluginCommand::Enable { plugin } => change(client, plugin, "/enable", None, args.json).await,
        PluginCommand::Logs {
            plugin,
            limit,
            follow,
        } => {
            let path = format!("/admin/plugins/{}/logs?limit={limit}", escape(plugin));
            let lines = List {
                path,
                member: "lines",
                line: event::log_line,
                is_newest_first: false,
                json: args.json,
            };
            show_list(client, &lines, *follow)
                .await
                .map_err(|error| unknown(plugin, error))
        }
        PluginCommand::Events {
            plugin,
            limit,
            follow,
        } => {
            let only = plugin
                .as_deref()
                .map(|plugin| format!("&plugin={}", escape(plugin)));
            let events = List {
                path: format!("/admin/events?limit={limit}{}", only.unwrap_or_default()),
                member: "events",
                line: event::line,
                is_newest_first: true,
                json: args.json,
            };
            show_list(client, &events, *follow).await.map_err(Failed::from)
        }
    }
}

/// One call about one plugin, and its answer.
async fn about(
    client: &Client,
    plugin: &str,
    method: Method,
    action: &str,
    body: Option<&Value>,
) -> Result<Value, Failed> {
    let path = format!("/admin/plugins/{}{action}", escape(plugin));
    let answer = client.call(method, &path, body).await;
    answer.map_err(|error| unknown(plugin, error))
}

/// An error, with the way out if it is that there is no such plugin.
fn unknown(plugin: &str, error: ClientError) -> Failed {
    let is_unknown = matches!(&error, ClientError::Refused(refusal) if refusal.code == "plugin-not-found");
    let mut failed = Failed::from(error);
    if is_unknown {
        failed.message = format!("there is no plugin {plugin:?}; `berth plugin list` shows them");
    }
    failed
}

/// A change that is one event.
async fn change(
    client: &Client,
    plugin: &str,
    action: &str,
    body: Option<&Value>,
    json: bool,
) -> Result<String, Failed> {
    let event = about(client, plugin, Method::POST, action, body).await?;
    match refused(&event) {
        Some(_) => Err(Failed {
            message: event::sentence(&event),
            answer: Some(event),
            code: EXIT_FAILED,
        }),
        None => Ok(said(&event, json)),
    }
}

fn said(event: &Value, json: bool) -> String {
    match json {
        true => pretty(event),
        false => format!("{}\n", event::sentence(event)),
    }
}

/// Whether an event says no.
fn refused(event: &Value) -> Option<Refusal> {
    let kind = event.get("kind").and_then(Value::as_str);
    (kind == Some("refused")).then(|| {
        Refusal::of(event.clone()).unwrap_or_else(|| Refusal {
            code: "refused".to_owned(),
            answer: event.clone(),
        })
    })
}

/// A component as it was when it was read, and the signature beside it.
struct Component {
    bytes: Bytes,
    signature: Option<String>,
}

impl Component {
    fn read(file: &Path) -> Result<Self, Failed> {
        let faulty = |message: String| Failed {
            code: EXIT_FAULTY,
            ..message.into()
        };
        let bytes = read(file, MAX_COMPONENT).map_err(faulty)?;
        let bytes = bytes.ok_or_else(|| {
            faulty(format!(
                "{}: there is no such file; build the component first",
                file.display()
            ))
        })?;
        let mut signed = file.as_os_str().to_owned();
        signed.push(".minisig");
        let signed = PathBuf::from(signed);
        let signature = match read(&signed, MAX_SIGNATURE).map_err(faulty)? {
            Some(text) => Some(String::from_utf8(text).map_err(|_| {
                faulty(format!(
                    "{}: is no signature; make it again with `minisign -S`, or move it away",
                    signed.display()
                ))
            })?),
            None => None,
        };
        Ok(Self {
            bytes: bytes.into(),
            signature,
        })
    }
}

/// A file's bytes, if there is one.
fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, String> {
    let said = |error: io::Error| format!("{}: {error}", path.display());
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(said)?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(said)?;
    match bytes.len() as u64 > most {
        true => Err(format!(
            "{}: has more than {}, which is the most that a host takes",
            path.display(),
            size(most)
        )),
        false => Ok(Some(bytes)),
    }
}

/// Send a component and wait for what becomes of it. What serves now is asked first: a plugin that isn't there costs no
/// upload, and a refusal can say what serves on.
async fn deploy(
    client: &Client,
    plugin: &str,
    component: Component,
    (canary, promote_after): (Option<Share>, Option<u64>),
) -> Result<Value, Failed> {
    let serving = about(client, plugin, Method::GET, "", None).await?;
    let path = deploy_path(plugin, canary, promote_after);
    let (sent, total) = (Sent::default(), component.bytes.len());
    let sending = client.send(&path, component.bytes, component.signature.as_deref(), &sent);
    let refused = match watched(plugin, sending, &sent, total).await {
        Ok(event) => match refused(&event) {
            Some(refusal) => refusal,
            None => return Ok(event),
        },
        Err(ClientError::Refused(refusal)) => refusal,
        Err(error) => {
            let is_open = matches!(error, ClientError::Unreachable(..));
            let mut failed = Failed::from(error);
            if is_open {
                failed.message.push_str(&format!(
                    ". Whether the component serves is not known: `berth plugin show {}` tells",
                    clean(plugin)
                ));
            }
            return Err(failed);
        }
    };
    Err(Failed {
        message: event::refusal(plugin, &serving, &refused),
        answer: Some(refused.answer),
        code: EXIT_FAILED,
    })
}

fn deploy_path(plugin: &str, canary: Option<Share>, promote_after: Option<u64>) -> String {
    let mut path = format!("/admin/plugins/{}/deploy", escape(plugin));
    if let Some(share) = canary {
        path.push_str(&format!("?canary={}", escape(&share.to_string())));
    }
    if let Some(requests) = promote_after {
        path.push_str(&format!("&promoteAfter={requests}"));
    }
    path
}

/// Wait for an answer, and say meanwhile how far it is, if somebody may be looking.
async fn watched<T>(plugin: &str, work: impl Future<Output = T>, sent: &Sent, total: usize) -> T {
    let mut work = std::pin::pin!(work);
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let started = Instant::now();
    let mut ticks = interval_at(tokio::time::Instant::now() + DRAWN, DRAWN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_drawn = false;
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            _ = ticks.tick() => {
                // To the line's beginning, the text, and nothing of what was there before.
                eprint!("\r{}\u{1b}[K", progress(plugin, sent.bytes(), total, started.elapsed()));
                let _ = io::stderr().flush();
                is_drawn = true;
            }
        }
    };
    if is_drawn {
        eprint!("\r\u{1b}[K");
    }
    done
}

fn progress(plugin: &str, sent: usize, total: usize, since: Duration) -> String {
    let plugin = clean(plugin);
    let seconds = since.as_secs();
    match sent < total {
        true => format!("{plugin}: {} of {} sent", size(sent as u64), size(total as u64)),
        false => format!("{plugin}: the host checks, compiles and tries it ({seconds} s)"),
    }
}

/// A list that may go on.
struct List {
    path: String,
    /// Where the list is in an answer.
    member: &'static str,
    /// One of it for people.
    line: fn(&Value) -> String,
    is_newest_first: bool,
    json: bool,
}

impl List {
    /// One of it, as it comes.
    fn entry(&self, entry: &Value) -> String {
        match self.json {
            true => format!("{entry}\n"),
            false => (self.line)(entry),
        }
    }
}

async fn show_list(client: &Client, list: &List, follow: bool) -> Result<String, ClientError> {
    if follow {
        return follow_list(client, list).await;
    }
    let answer = client.call(Method::GET, &list.path, None).await?;
    Ok(match list.json {
        true => pretty(&answer),
        false => entries(&answer, list.member).iter().map(list.line).collect(),
    })
}

fn entries<'a>(answer: &'a Value, member: &str) -> &'a [Value] {
    answer
        .get(member)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Print the list, oldest first, and then what comes, until nobody reads it or the host stops.
///
/// The stream is opened before the list is asked for, so that nothing gets lost in between; what is in both is printed
/// once.
async fn follow_list(client: &Client, list: &List) -> Result<String, ClientError> {
    let mut stream = client.follow(&list.path).await?;
    let answer = client.call(Method::GET, &list.path, None).await?;
    let mut known = entries(&answer, list.member).to_vec();
    if list.is_newest_first {
        known.reverse();
    }
    let text: String = known.iter().map(|entry| list.entry(entry)).collect();
    let mut is_read = print(&text);
    while is_read {
        let entry = stream.next().await?;
        match known.iter().position(|known| *known == entry) {
            Some(at) => drop(known.swap_remove(at)),
            None => is_read = print(&list.entry(&entry)),
        }
    }
    Ok(String::new())
}

/// Whether somebody still reads.
fn print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trial_is_in_the_query() {
        let share = "10%".parse().ok();
        assert_eq!(deploy_path("my-x", None, None), "/admin/plugins/my-x/deploy");
        assert_eq!(
            deploy_path("x/../y", share, None),
            "/admin/plugins/x%2F..%2Fy/deploy?canary=10%25"
        );
        assert_eq!(
            deploy_path("x", share, Some(500)),
            "/admin/plugins/x/deploy?canary=10%25&promoteAfter=500"
        );
    }

    #[test]
    fn progress_says_what_is_waited_for() {
        let at = |sent| progress("hello\u{1b}", sent, 4_404_019, Duration::from_millis(3_900));
        assert_eq!(at(2_097_152), "hello: 2.0 MiB of 4.2 MiB sent");
        assert_eq!(
            at(4_404_019),
            "hello: the host checks, compiles and tries it (3 s)"
        );
    }

    #[test]
    fn component_is_read_with_the_signature_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let file = folder.join("x.wasm");
        std::fs::write(&file, b"\0asm").unwrap();
        let component = Component::read(&file).ok().unwrap();
        assert_eq!((&component.bytes[..], component.signature), (&b"\0asm"[..], None));
        let signed = folder.join("x.wasm.minisig");
        std::fs::write(&signed, "untrusted comment: x\n").unwrap();
        let signature = Component::read(&file).ok().unwrap().signature;
        assert_eq!(signature.as_deref(), Some("untrusted comment: x\n"));
        for (text, expected) in [
            (vec![0xff], "is no signature"),
            (vec![b'x'; 40_000], "has more than 32.0 KiB"),
        ] {
            std::fs::write(&signed, text).unwrap();
            let failed = Component::read(&file).err().unwrap();
            assert!(failed.message.contains(expected), "{}", failed.message);
            assert_eq!(failed.code, EXIT_FAULTY);
        }
        let failed = Component::read(&folder.join("y.wasm")).err().unwrap();
        assert!(
            failed
                .message
                .ends_with("y.wasm: there is no such file; build the component first")
        );
        let failed = Component::read(folder).err().unwrap();
        assert!(failed.message.contains("directory"), "{}", failed.message);
    }

    #[test]
    fn only_a_refusal_is_one() {
        assert!(refused(&json!({ "kind": "swapped", "code": "x" })).is_none());
        let refusal = refused(&json!({ "kind": "refused", "code": "not-wasm", "reason": "no" }));
        assert_eq!(refusal.unwrap().reason(), "no");
        assert_eq!(refused(&json!({ "kind": "refused" })).unwrap().code, "refused");
    }
}
