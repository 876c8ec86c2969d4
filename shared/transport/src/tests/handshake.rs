//! Who gets a link, and what the others are told.

use std::sync::Arc;
use std::time::Duration;

use fairlead_wire::frame::Stamp;
use fairlead_wire::msg::{Hello, RefuseCode, Role};
use fairlead_wire::{PROTOCOL, PROTOCOL_MIN};
use quinn::{Endpoint, TokioRuntime};

use super::{Cluster, bytes, greet, hello, local, options, ping, soon, welcome};
use crate::error::LinkError;
use crate::identity::SCHEDULER_HOST;
use crate::{
    ANY_NAME, Backoff, ConnectError, Identity, Lane, LinkOptions, ListenError, connect, listen, tls,
};

#[tokio::test]
async fn both_ends_know_each_other() {
    let cluster = Cluster::new();
    let (_listener, far, near) = cluster.pair(&options(), &options()).await;
    assert_eq!((far.peer().role, far.peer().name.as_str()), (Role::Agent, "a"));
    assert_eq!((near.peer().role, near.peer().name.as_str()), (Role::Scheduler, "s"));
}

#[tokio::test]
async fn the_hello_arrives_with_its_protocol() {
    let cluster = Cluster::new();
    let mut listener = cluster.listen(&options());
    let address = listener.local_addr().to_string();
    let gateway = cluster.authority.issue(Role::Gateway, ANY_NAME).unwrap();
    let said = Hello { have: Some((3, 4)), protocol_max: 9, ..hello(Role::Gateway, "gw-7") };
    let server = async {
        let accepted = listener.accept().await.unwrap();
        assert_eq!(accepted.hello, said);
        assert_eq!(accepted.protocol, PROTOCOL);
        greet(accepted).await
    };
    let options = options();
    let (client, _far) =
        soon(async { tokio::join!(connect(&address, &gateway, &said, &options), server) }).await;
    assert_eq!(client.unwrap().1, welcome());
}

#[tokio::test]
async fn a_hello_that_the_certificate_does_not_cover_is_refused_with_the_reason() {
    let cluster = Cluster::new();
    let listener = cluster.listen(&options());
    let address = listener.local_addr().to_string();
    let agent = cluster.agent("a");
    let newer = Hello { protocol_min: 7, protocol_max: 9, ..hello(Role::Agent, "a") };
    let no_common = format!("7 to 9 there, {PROTOCOL_MIN} to {PROTOCOL} here");
    let cases = [
        (hello(Role::Gateway, "a"), RefuseCode::Identity, "hello as gateway with the certificate of a agent"),
        (hello(Role::Scheduler, "a"), RefuseCode::Identity, "hello as scheduler"),
        (hello(Role::Agent, "b"), RefuseCode::Identity, "hello as \"b\" with a certificate for \"a\""),
        (newer, RefuseCode::Protocol, no_common.as_str()),
    ];
    for (said, code, part) in cases {
        match soon(connect(&address, &agent, &said, &options())).await {
            Err(error @ ConnectError::Refused(_)) => {
                let ConnectError::Refused(refuse) = &error else { unreachable!() };
                assert_eq!(refuse.code, code, "{}", refuse.reason);
                assert!(refuse.reason.contains(part), "{}", refuse.reason);
                assert!(error.is_permanent());
            }
            other => panic!("{part}: {:?}", other.map(|_| ())),
        }
    }
    assert_eq!(listener.refused().total(), 4);
}

#[tokio::test]
async fn another_authority_is_not_believed_by_either_side() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let listener = ours.listen(&options());
    let address = listener.local_addr().to_string();
    // The client does not know the server's authority.
    let error = soon(connect(&address, &theirs.agent("a"), &hello(Role::Agent, "a"), &options()))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    // The server does not know the client's: a client that trusts both authorities gets to its hello.
    let config = tls::client_trusting(&theirs.agent("a"), &ours.scheduler, &options()).unwrap();
    let error = raw_connect(listener.local_addr(), config).await.1;
    assert!(matches!(&error, LinkError::Transport(_)), "{error}");
    assert_eq!(listener.refused().total(), 2);
}

/// Connects without our client's checks; returns how the connection ends.
async fn raw_connect(address: std::net::SocketAddr, config: quinn::ClientConfig) -> (Endpoint, LinkError) {
    let socket = tls::udp_socket(local(), &options()).unwrap();
    let endpoint =
        Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
    let connecting = endpoint.connect_with(config, address, SCHEDULER_HOST).unwrap();
    let error = match soon(connecting).await {
        Ok(connection) => soon(connection.closed()).await,
        Err(error) => error,
    };
    (endpoint, error.into())
}

#[tokio::test]
async fn only_a_scheduler_serves() {
    let cluster = Cluster::new();
    let agent = cluster.agent("a");
    assert!(matches!(listen(local(), &agent, &options()), Err(ListenError::Role(_))));

    // One that serves all the same, with a certificate of the right authority.
    let impostor = cluster.authority.issue(Role::Gateway, "g").unwrap();
    let config = tls::server(&impostor, &options()).unwrap();
    let socket = tls::udp_socket(local(), &options()).unwrap();
    let endpoint =
        Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
            .unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    let error = soon(connect(&address, &agent, &hello(Role::Agent, "a"), &options())).await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");
    serving.abort();
}

#[tokio::test]
async fn a_scheduler_cannot_connect_as_a_client() {
    let cluster = Cluster::new();
    let listener = cluster.listen(&options());
    let address = listener.local_addr().to_string();
    let outcome = soon(connect(&address, &cluster.scheduler, &hello(Role::Agent, "a"), &options())).await;
    assert!(matches!(outcome.err().unwrap(), ConnectError::Link { .. }));
}

#[tokio::test]
async fn what_comes_instead_of_a_hello_is_refused() {
    let cluster = Cluster::new();
    let listener = cluster.listen(&options());
    let hello = bytes(&hello(Role::Agent, "a"), Stamp::default());
    let mut broken = hello.to_vec();
    broken[50..].fill(0xff);
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("another kind", ping(1).to_vec(), "Ping came before the hello"),
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".repeat(8), "not a frame"),
        ("half a frame", hello[..60].to_vec(), "cut short"),
        ("nothing", Vec::new(), "no hello"),
        ("a broken archive", broken, "invalid Hello"),
    ];
    for (what, sent, part) in cases {
        let config = tls::client(&cluster.agent("a"), &options()).unwrap();
        let socket = tls::udp_socket(local(), &options()).unwrap();
        let endpoint =
            Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
        let connecting = endpoint.connect_with(config, listener.local_addr(), SCHEDULER_HOST).unwrap();
        let connection = soon(connecting).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&sent).await.unwrap();
        send.finish().unwrap();
        match LinkError::from(soon(connection.closed()).await) {
            LinkError::Refused(refuse) => {
                assert_eq!(refuse.code, RefuseCode::Malformed, "{what}");
                assert!(refuse.reason.contains(part), "{what}: {}", refuse.reason);
            }
            other => panic!("{what}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_dropped_and_holds_up_nobody() {
    let cluster = Cluster::new();
    let server = LinkOptions { handshake_timeout: Duration::from_millis(300), ..options() };
    let (listener, far, near) = cluster.pair(&server, &options()).await;
    drop((far, near));
    let config = tls::client(&cluster.agent("a"), &options()).unwrap();
    let (_endpoint, error) = raw_connect(listener.local_addr(), config).await;
    assert!(matches!(&error, LinkError::Closed(why) if why.contains("handshake")), "{error}");
}

#[tokio::test]
async fn handshakes_beyond_the_bound_are_turned_away() {
    let cluster = Cluster::new();
    let server = LinkOptions { max_handshakes: 1, ..options() };
    let listener = cluster.listen(&server);
    let config = tls::client(&cluster.agent("a"), &options()).unwrap();
    let socket = tls::udp_socket(local(), &options()).unwrap();
    let endpoint =
        Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
    // Its hello never comes, so its handshake stays under way.
    let _silent =
        soon(endpoint.connect_with(config, listener.local_addr(), SCHEDULER_HOST).unwrap()).await.unwrap();
    let address = listener.local_addr().to_string();
    let error = soon(connect(&address, &cluster.agent("a"), &hello(Role::Agent, "a"), &options()))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, ConnectError::Link { .. }), "{error}");
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn addresses_are_checked() {
    let agent = Cluster::new().agent("a");
    for address in ["", "localhost", "localhost:99999", ":0x"] {
        let outcome = soon(connect(address, &agent, &hello(Role::Agent, "a"), &options())).await;
        assert!(matches!(outcome, Err(ConnectError::Resolve { .. })), "{address:?}");
    }
    let silent = std::net::UdpSocket::bind(local()).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let brief = LinkOptions { handshake_timeout: Duration::from_millis(50), ..options() };
    let error = soon(connect(&address, &agent, &hello(Role::Agent, "a"), &brief)).await.err().unwrap();
    assert!(matches!(&error, ConnectError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("50 ms") && !error.is_permanent(), "{error}");
}

#[tokio::test]
async fn a_host_of_several_addresses_is_reached_at_the_one_that_answers() {
    let cluster = Cluster::new();
    let mut listener = cluster.listen(&options());
    let silent = std::net::UdpSocket::bind(local()).unwrap();
    let addresses = [silent.local_addr().unwrap(), listener.local_addr()];
    let (agent, options) = (cluster.agent("a"), options());
    let config = tls::client(&agent, &options).unwrap();
    let reached = crate::connect::first_to_answer(&addresses, &agent, &config, &options);
    let (_endpoint, connection) = soon(reached).await.unwrap();
    assert_eq!(connection.remote_address(), listener.local_addr());

    let none = [silent.local_addr().unwrap()];
    let waiting = crate::connect::first_to_answer(&none, &agent, &config, &options);
    assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    soon(listener.close("done")).await;
}

/// A scheduler that comes back on the same port, without a farewell, is noticed by its clients at once (by a
/// stateless reset, not by a timeout), and they link up again.
#[tokio::test]
async fn a_restarted_scheduler_is_noticed_and_found_again() {
    let cluster = Cluster::new();
    // A runtime of its own stands for the process: dropped, its sockets close and nobody says goodbye.
    let (address, first) = {
        let identity = cluster.scheduler.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut listener = listen(local(), &identity, &options()).unwrap();
                tell.send(listener.local_addr()).unwrap();
                let link = greet(listener.accept().await.unwrap()).await;
                let _ = stopped.await;
                // The runtime stops with this block: what the destructors want sent is never sent, as after a kill.
                drop((listener, link));
            });
        });
        (told.recv().unwrap(), (thread, stop))
    };
    let agent = cluster.agent("a");
    let quick = LinkOptions { keep_alive: Duration::from_millis(100), ..options() };
    let hello = hello(Role::Agent, "a");
    let (mut near, _) = soon(connect(&address.to_string(), &agent, &hello, &quick)).await.unwrap();
    let (thread, stop) = first;
    stop.send(()).unwrap();
    thread.join().unwrap();

    let mut listener = listen(address, &cluster.scheduler, &options()).unwrap();
    let error = soon(near.recv()).await.unwrap_err();
    assert!(matches!(error, LinkError::Restarted), "{error}");
    let mut backoff = Backoff::default();
    let (again, _far) = soon(async {
        tokio::join!(
            async {
                loop {
                    match connect(&address.to_string(), &agent, &hello, &quick).await {
                        Ok(linked) => return linked,
                        Err(_) => backoff.wait().await,
                    }
                }
            },
            async { greet(listener.accept().await.unwrap()).await }
        )
    })
    .await;
    again.0.sender().send(Lane::Control, ping(1)).await.unwrap();
}

#[test]
fn an_identity_of_one_cluster_is_no_peer_of_another_with_the_same_authority() {
    // Cannot come about with our own tools; a shared authority must still not join two clusters.
    let cluster = Cluster::new();
    let stranger: Identity = cluster.agent("a");
    let mut peer = stranger.peer().clone();
    peer.cluster = "other".into();
    let refused = crate::listen::check(&hello(Role::Agent, "a"), &peer, "test").unwrap_err();
    assert_eq!(refused.code, RefuseCode::Identity);
}
