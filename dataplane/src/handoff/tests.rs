use std::sync::Arc;

use fairlead_wire::TargetId;
use fairlead_wire::msg::InstanceInfo;

use super::*;
use crate::http::RequestIds;

const BODY: &str = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":7,"stop":["x"],"min_tokens":2,"messages":[{"role":"user","content":"hi"}]}"#;

/// The same for a prefill leg.
const PREFILL: &str =
    r#""model":"m","stream":false,"max_tokens":1,"stop":["x"],"messages":[{"role":"user","content":"hi"}]}"#;

fn target(name: &str, rank: u16, adjust: impl FnOnce(&mut InstanceInfo)) -> TargetEntry {
    let mut info = InstanceInfo::new(name, &format!("{name}.local:8000"), ["m"]);
    adjust(&mut info);
    TargetEntry::new(TargetId::new(0, 1), Arc::new(info), rank, true, Arc::default())
}

fn with(handoff: Handoff, adjust: impl FnOnce(&mut Transfer)) -> impl FnOnce(&mut InstanceInfo) {
    move |info| {
        let mut transfer = Transfer::new(handoff);
        adjust(&mut transfer);
        info.transfer = Some(transfer);
    }
}

fn fresh() -> Fresh<'static> {
    Fresh { id: RequestIds::new(7).next_id(), number: u64::MAX, push_peer: None }
}

fn text(leg: &Leg) -> String {
    String::from_utf8(leg.body.pieces().concat()).unwrap()
}

fn lines(leg: &Leg) -> Vec<String> {
    leg.add.iter().map(|(name, value)| format!("{name}: {value}")).collect()
}

fn request(body: &Bytes) -> Request<'_> {
    Request { api: Api::Chat, body }
}

#[test]
fn sglang_tells_a_room_in_headers_or_in_the_body() {
    let body = Bytes::from(BODY);
    let of = |version: &str, rank, ranks, bootstrap: Option<&str>| {
        let p = target("p", rank, |info| {
            with(Handoff::Sglang, |transfer| transfer.bootstrap = bootstrap.map(str::to_owned))(info);
            info.engine_version = version.to_owned();
            info.dp_ranks = ranks;
        });
        let d = target("d", 0, with(Handoff::Sglang, |_| {}));
        let deal = Deal::new(&p, &d, &fresh()).unwrap();
        assert_eq!((deal.order(), deal.wants_told()), (Order::Concurrent, false));
        (deal.prefill_leg(&request(&body)).unwrap(), deal.decode_leg(&request(&body), None).unwrap())
    };
    let room = u64::MAX >> 2;
    let (p, d) = of("0.5.15", 0, 1, Some("boot:9000"));
    assert_eq!(lines(&p), lines(&d));
    assert_eq!(
        lines(&p),
        [
            "x-override-bootstrap-host: boot".to_owned(),
            "x-override-bootstrap-port: 9000".to_owned(),
            format!("x-override-bootstrap-room: {room}")
        ]
    );
    assert_eq!((text(&p), text(&d), p.body.pieces().len()), (BODY.into(), BODY.into(), 1));
    assert_eq!(p.body.pieces()[0].as_ptr(), body.as_ptr(), "not copied");
    assert_eq!((p.id.as_deref(), d.id), (Some(fresh().id.as_str()), None));

    let (p, d) = of("0.5.14", 0, 1, None);
    let members = format!(r#"{{"bootstrap_host":"p.local","bootstrap_port":8998,"bootstrap_room":{room},"#);
    assert_eq!(text(&p), BODY.replacen('{', &members, 1));
    assert_eq!((text(&d), p.add.len()), (text(&p), 0));

    // The decode side finds the rank by the room.
    let (p, _) = of("0.5.20", 2, 4, Some("boot:9000"));
    let number: u64 = p.add[2].1.parse().unwrap();
    assert_eq!((number % 4, p.add[3].0, p.add[3].1.as_str()), (2, "x-override-disagg-prefill-dp-rank", "2"));
    for (version, yes) in [
        ("", false),
        ("v0.5.16", true),
        ("0.5.15.post1", true),
        ("0.6", true),
        ("1.0.0", true),
        ("0.4.99", false),
    ] {
        assert_eq!(reads_headers(version), yes, "{version}");
    }
}

#[test]
fn nixl_relays_what_the_prefill_leg_was_told() {
    let body = Bytes::from(BODY);
    for handoff in [Handoff::NixlPull, Handoff::NixlPush] {
        let (p, d) = (target("p", 0, with(handoff, |_| {})), target("d", 0, with(handoff, |_| {})));
        let deal = Deal::new(&p, &d, &fresh()).unwrap();
        assert_eq!((deal.order(), deal.wants_told()), (Order::Sequential, true));
        let p = deal.prefill_leg(&request(&body)).unwrap();
        let nulls = r#"{"kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null},"#;
        assert_eq!(text(&p), format!("{nulls}{PREFILL}"));
        let answer = Bytes::from(r#"{"a":1, "kv_transfer_params" : {"x" : [1.50, {}],"y":"\"}"} , "b":2}"#);
        let told = told(&answer).unwrap();
        assert_eq!(told, r#"{"x" : [1.50, {}],"y":"\"}"}"#);
        let d = deal.decode_leg(&request(&body), Some(told.clone())).unwrap();
        let inserted = format!("{{\"kv_transfer_params\":{},", std::str::from_utf8(&told).unwrap());
        assert_eq!(text(&d), BODY.replacen('{', &inserted, 1));
        assert!(p.id.is_some() && p.id == d.id);
        assert!(deal.decode_leg(&request(&body), None).is_none());
    }
    for nothing in [r#"{"kv_transfer_params":null}"#, "{}", "[]", "", r#"{"kv_transfer_params":{}"#, "<html>"]
    {
        assert_eq!(told(&Bytes::from(nothing)), None, "{nothing}");
    }
}

#[test]
fn nixl_push_goes_at_once_when_the_engine_is_known() {
    let answer = |mode: &str, host: &str| {
        Bytes::from(format!(
            r#"{{"remote_block_ids":[[1]],"remote_engine_id":"e-1","remote_host":{host},"remote_port":5600,"tp_size":2,"pp_size": 1,"transfer_mode":"{mode}","remote_request_id":"old"}}"#
        ))
    };
    assert_eq!(PushPeer::of(&answer("pull", "\"h\"")), None);
    assert_eq!(PushPeer::of(&answer("push", "null")), None);
    let peer = PushPeer::of(&answer("push", "\"h\"")).unwrap();
    let side = |name| target(name, 0, with(Handoff::NixlPush, |_| {}));
    let deal = Deal::new(&side("p"), &side("d"), &Fresh { push_peer: Some(&peer), ..fresh() }).unwrap();
    assert_eq!((deal.order(), deal.wants_told()), (Order::Concurrent, false));
    let body = Bytes::from(r#"{"prompt":"x"}"#);
    let d = deal.decode_leg(&request(&body), None).unwrap();
    let id = deal.id();
    assert_eq!(
        text(&d),
        format!(
            r#"{{"kv_transfer_params":{{"do_remote_prefill":true,"do_remote_decode":false,"remote_engine_id":"e-1","remote_host":"h","remote_port":5600,"tp_size":2,"pp_size":1,"remote_request_id":"{id}"}},"prompt":"x"}}"#
        )
    );
    assert_eq!(d.id.as_deref(), Some(id));
}

#[test]
fn mooncake_matches_by_a_transfer_id() {
    let engines = |transfer: &mut Transfer| {
        transfer.bootstrap = Some("boot:8998".into());
        transfer.engine_ids = vec!["e0".into(), "e\"1".into()];
    };
    let p = |rank| target("p", rank, with(Handoff::Mooncake, engines));
    let d = target("d", 0, with(Handoff::Mooncake, |_| {}));
    let deal = Deal::new(&p(1), &d, &fresh()).unwrap();
    assert_eq!(deal.order(), Order::Concurrent);
    let body = Bytes::from(r#"{"prompt":"x","max_tokens":3}"#);
    let (p_leg, d_leg) =
        (deal.prefill_leg(&request(&body)).unwrap(), deal.decode_leg(&request(&body), None).unwrap());
    let id = text(&p_leg).split("xfer-").nth(1).unwrap()[..36].to_owned();
    assert_eq!(id.bytes().filter(|b| *b == b'-').count(), 4);
    assert_eq!(
        text(&p_leg),
        format!(
            r#"{{"kv_transfer_params":{{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-{id}"}},"prompt":"x","max_tokens":1}}"#
        )
    );
    assert_eq!(
        text(&d_leg),
        format!(
            r#"{{"kv_transfer_params":{{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":"http://boot:8998","remote_engine_id":"e\"1","transfer_id":"xfer-{id}"}},"prompt":"x","max_tokens":3}}"#
        )
    );
    assert!(Deal::new(&p(2), &d, &fresh()).is_err(), "no such rank is told");
    assert!(Deal::new(&target("p", 0, with(Handoff::Mooncake, |_| {})), &d, &fresh()).is_err());
}

#[test]
fn mori_and_p2p_name_both_sockets_in_the_id() {
    let body = Bytes::from(BODY);
    let side = |name: &str, handoff, notify| {
        let peer = format!("{name}.kv:21001");
        target(
            name,
            0,
            with(handoff, |transfer| {
                transfer.peer = Some(peer);
                transfer.peer_port = notify;
            }),
        )
    };
    let id = fresh().id;
    let id = id.as_str();
    for (handoff, notify, wanted) in [
        (Handoff::P2pNccl, None, format!("___prefill_addr_p.kv:21001___decode_addr_d.kv:21001_{id}")),
        (Handoff::P2pNccl, Some(5), format!("___prefill_addr_p.kv:21001___decode_addr_d.kv:21001_{id}")),
        (Handoff::MoriRead, None, format!("___prefill_addr_p.kv:21001___decode_addr_d.kv:21001_{id}")),
        (
            Handoff::MoriWrite,
            Some(5),
            format!(
                "___prefill_addr_host:p.kv,handshake:21001,notify:5___decode_addr_host:d.kv,handshake:21001,notify:5_{id}"
            ),
        ),
    ] {
        let deal = Deal::new(&side("p", handoff, notify), &side("d", handoff, notify), &fresh()).unwrap();
        assert_eq!(deal.id(), wanted);
        let leg = deal.prefill_leg(&request(&body)).unwrap();
        assert_eq!(leg.id.as_deref(), Some(wanted.as_str()));
        let mori = handoff != Handoff::P2pNccl;
        let ends = text(&leg).contains(r#""ignore_eos":true"#) && !text(&leg).contains(r#""stop""#);
        assert_eq!((ends, text(&leg).contains(r#""transfer_id":"tx-"#)), (mori, mori), "{}", text(&leg));
        assert_eq!(text(&leg) == format!("{{{PREFILL}"), !mori);
        assert_eq!(deal.wants_told(), handoff == Handoff::MoriRead);
        let told = Some(Bytes::from_static(b"{}"));
        let leg = deal.decode_leg(&request(&body), told).unwrap();
        assert_eq!(leg.id.as_deref(), Some(wanted.as_str()));
        assert_eq!(text(&leg) == BODY, !mori);
        let known = r#""remote_host":"p.kv","remote_port":21001,"remote_handshake_port":21001,"remote_notify_port":5}"#;
        assert_eq!(text(&leg).contains(known), handoff == Handoff::MoriWrite, "{}", text(&leg));
    }
    let bare = |name| target(name, 0, with(Handoff::P2pNccl, |_| {}));
    assert!(Deal::new(&bare("p"), &side("d", Handoff::P2pNccl, None), &fresh()).is_err());
    assert!(Deal::new(&side("p", Handoff::P2pNccl, None), &bare("d"), &fresh()).is_err());
}

#[test]
fn stores_and_sidecars_get_the_clients_own_request() {
    let body = Bytes::from(BODY);
    let side = |name: &str, handoff| target(name, 0, with(handoff, |_| {}));
    let deal =
        Deal::new(&side("p", Handoff::SharedStore), &side("d", Handoff::SharedStore), &fresh()).unwrap();
    assert_eq!((deal.order(), deal.wants_told()), (Order::Sequential, false));
    let p = deal.prefill_leg(&request(&body)).unwrap();
    assert_eq!(text(&p), format!("{{{PREFILL}"));
    let d = deal.decode_leg(&request(&body), None).unwrap();
    assert_eq!((text(&d).as_str(), d.add.len(), d.id), (BODY, 0, None));

    let deal = Deal::new(&side("p", Handoff::Sidecar), &side("d", Handoff::Sidecar), &fresh()).unwrap();
    assert_eq!(deal.order(), Order::DecodeOnly);
    assert!(deal.prefill_leg(&request(&body)).is_none());
    let d = deal.decode_leg(&request(&body), None).unwrap();
    assert_eq!(
        (text(&d).as_str(), lines(&d)),
        (BODY, vec!["x-prefiller-host-port: p.local:8000".to_owned()])
    );
    assert_eq!(d.id, None);

    assert!(Deal::new(&side("p", Handoff::LmcachePd), &side("d", Handoff::LmcachePd), &fresh()).is_err());
    assert!(Deal::new(&target("p", 0, |_| {}), &side("d", Handoff::NixlPull), &fresh()).is_err());
}
