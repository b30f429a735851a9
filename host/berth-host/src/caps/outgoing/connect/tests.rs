use std::net::IpAddr;
use std::sync::Mutex;

use tokio::net::TcpListener;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A resolver with one answer after another, the last one for ever.
#[derive(Clone)]
struct Answers(Arc<Mutex<Vec<Vec<&'static str>>>>);

impl Answers {
    fn new(answers: &[&[&'static str]]) -> Self {
        Self(Arc::new(Mutex::new(answers.iter().map(|a| a.to_vec()).collect())))
    }
}

impl Resolve for Answers {
    async fn resolve(&self, _: String, port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut answers = self.0.lock().unwrap();
        let now = if answers.len() > 1 {
            answers.remove(0)
        } else {
            answers[0].clone()
        };
        Ok(now
            .into_iter()
            .map(|ip| SocketAddr::new(ip.parse().unwrap(), port))
            .collect())
    }
}

fn connector(grants: &[String], answers: Answers, limit: Duration) -> Connector<Answers> {
    let entries = grants.iter().map(|g| g.parse().unwrap()).collect();
    Connector::new(Arc::new(HttpGrant::new(entries)), answers, 8, limit)
}

async fn connect(connector: &mut Connector<Answers>, host: &str, port: u16) -> Result<IpAddr, ConnectFault> {
    let uri = format!("http://{host}:{port}/").parse().unwrap();
    connector.call(uri).await.map(|stream| stream.peer())
}

/// Servers on one port of both loopback addresses; the second must never hear of anything.
async fn servers() -> (TcpListener, TcpListener, u16) {
    loop {
        let granted = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = granted.local_addr().unwrap().port();
        if let Ok(other) = TcpListener::bind(("127.0.0.2", port)).await {
            return (granted, other, port);
        }
    }
}

fn was_never_called(listener: &TcpListener) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    listener.poll_accept(&mut cx).is_pending()
}

#[tokio::test]
async fn answer_that_changes_gets_nothing_unchecked_in() {
    let (granted, other, port) = servers().await;
    let answers = Answers::new(&[
        &["127.0.0.1"],
        &["127.0.0.2"],
        &["169.254.169.254"],
        &["127.0.0.1"],
        &["::ffff:127.0.0.2"],
    ]);
    let grants = [format!("rebind.example:{port}"), format!("127.0.0.1:{port}")];
    let mut connector = connector(&grants, answers, PATIENCE);
    let ok: IpAddr = "127.0.0.1".parse().unwrap();
    for refused in [
        None,
        Some("127.0.0.2"),
        Some("169.254.169.254"),
        None,
        Some("127.0.0.2"),
    ] {
        match (connect(&mut connector, "rebind.example", port).await, refused) {
            (Ok(peer), None) => assert_eq!(peer, ok),
            (Err(ConnectFault::Refused(ip)), Some(text)) => assert_eq!(ip.to_string(), text),
            (other, _) => panic!("{other:?} instead of {refused:?}"),
        }
    }
    assert!(
        was_never_called(&other),
        "nothing but the checked address was connected to"
    );
    drop(granted);
}

#[tokio::test]
async fn of_several_addresses_only_the_admitted_ones_are_tried() {
    let (_granted, other, port) = servers().await;
    let answers = Answers::new(&[&["127.0.0.2", "fd00::1", "127.0.0.1", "10.0.0.1"]]);
    let grants = [format!("mixed.example:{port}"), "127.0.0.1".to_owned()];
    let mut connector = connector(&grants, answers, PATIENCE);
    let peer = connect(&mut connector, "mixed.example", port).await.unwrap();
    assert_eq!(peer.to_string(), "127.0.0.1");
    assert!(was_never_called(&other));
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_fails() {
    let (granted, other, port) = servers().await;
    drop(granted);
    let answers = Answers::new(&[&["127.0.0.1", "127.0.0.2"]]);
    let mut connector = connector(
        &[format!("two.example:{port}"), "127.0.0.0/8".to_owned()],
        answers,
        PATIENCE,
    );
    let peer = connect(&mut connector, "two.example", port).await.unwrap();
    assert_eq!(peer.to_string(), "127.0.0.2");
    drop(other);
    match connect(&mut connector, "two.example", port).await {
        Err(ConnectFault::Tcp(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn host_that_accepts_nothing_is_given_up_in_time() {
    // A queue of one that nobody takes from: further connections get no answer at all.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        queued.push(stream);
        assert!(queued.len() < 10_000, "the queue never fills");
    }
    let grants = [format!("hole.example:{}", address.port()), "127.0.0.1".to_owned()];
    let mut connector = connector(
        &grants,
        Answers::new(&[&["127.0.0.1"]]),
        Duration::from_millis(50),
    );
    let result = connect(&mut connector, "hole.example", address.port()).await;
    assert!(matches!(result, Err(ConnectFault::Timeout)), "{result:?}");
}

#[tokio::test]
async fn connections_are_bounded_and_a_closed_one_makes_room() {
    let (_granted, _other, port) = servers().await;
    let entries = vec![format!("127.0.0.1:{port}").parse().unwrap()];
    let mut connector = Connector::new(
        Arc::new(HttpGrant::new(entries)),
        Answers::new(&[&[]]),
        1,
        Duration::from_millis(50),
    );
    let uri: Uri = format!("http://127.0.0.1:{port}/").parse().unwrap();
    let first = connector.call(uri.clone()).await.unwrap();
    let second = connector.call(uri.clone()).await.map(|_| ());
    assert!(matches!(second, Err(ConnectFault::Limit)), "{second:?}");
    drop(first);
    assert!(connector.call(uri).await.is_ok());
}

#[tokio::test]
async fn name_without_an_address_says_so() {
    let mut connector = connector(&["none.example".to_owned()], Answers::new(&[&[]]), PATIENCE);
    let result = connect(&mut connector, "none.example", 80).await;
    assert!(matches!(result, Err(ConnectFault::NoAddress)), "{result:?}");
}

#[test]
fn families_take_turns_and_are_bounded() {
    let addresses = |list: &[&str]| -> Vec<SocketAddr> {
        list.iter()
            .map(|ip| SocketAddr::new(ip.parse().unwrap(), 80))
            .collect()
    };
    assert_eq!(
        in_turn(addresses(&["::1", "::2", "::3", "1.1.1.1"])),
        addresses(&["::1", "1.1.1.1", "::2", "::3"])
    );
    assert_eq!(
        in_turn(addresses(&["1.1.1.1", "1.1.1.2", "::1"])),
        addresses(&["1.1.1.1", "::1", "1.1.1.2"])
    );
    assert_eq!(in_turn(addresses(&["1.1.1.1"; 40])).len(), MAX_ADDRESSES);
    assert!(in_turn(Vec::new()).is_empty());
}
