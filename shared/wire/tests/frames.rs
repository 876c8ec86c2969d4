//! Frames: what is made can be read back; what is cut, flipped, oversized or foreign is refused with a reason.

use fairlead_wire::limits::MAX_PATH;
use fairlead_wire::msg::*;
use fairlead_wire::{Frame, FrameError, Header, Kind, Message, PROTOCOL, Stamp, TargetId, encode, max_len};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._/-]{1,24}"
}

fn target() -> impl Strategy<Value = u32> {
    (0u16..4096, any::<u16>()).prop_map(|(slot, generation)| TargetId::new(slot, generation).pack())
}

fn path() -> impl Strategy<Value = Vec<u64>> {
    vec(1u64.., 1..12)
}

fn instance() -> impl Strategy<Value = InstanceInfo> {
    let names = (text(), "[a-z]{1,8}:[1-9][0-9]{0,3}", text(), text());
    let engine = prop_oneof![Just(EngineKind::Generic), Just(EngineKind::Vllm), Just(EngineKind::Sglang)];
    let model = (text(), option::of(1u32..), option::of(text()))
        .prop_map(|(name, max_model_len, parent)| ModelInfo { name, max_model_len, parent });
    let sizes =
        (1u16..=1024, option::of(1u32..=65_536), option::of(1u64..1 << 40), option::of(1u32..1 << 20));
    let part = (role(), option::of(transfer()));
    (names, any::<u64>(), engine, part, vec(model, 0..4), sizes, vec((text(), text()), 0..3)).prop_map(
        |((name, address, host, engine_version), incarnation, engine, part, models, sizes, labels)| {
            let (role, transfer) = part;
            InstanceInfo {
                name,
                address,
                host,
                incarnation,
                engine,
                engine_version,
                models,
                role,
                transfer,
                dp_ranks: sizes.0,
                block_size: sizes.1,
                kv_blocks: sizes.2,
                max_num_seqs: sizes.3,
                labels,
            }
        },
    )
}

fn role() -> impl Strategy<Value = ServingRole> {
    prop_oneof![Just(ServingRole::Both), Just(ServingRole::Prefill), Just(ServingRole::Decode)]
}

fn transfer() -> impl Strategy<Value = Transfer> {
    let handoff = prop::sample::select(Handoff::ALL);
    let place = || option::of("[a-z]{1,8}:[1-9][0-9]{0,3}");
    let numbers = (option::of(1u16..), option::of(1u32..1 << 30));
    (handoff, "[a-z]{0,9}", place(), place(), numbers, vec(text(), 0..3)).prop_map(
        |(handoff, domain, bootstrap, peer, (peer_port, bytes_per_token), engine_ids)| Transfer {
            handoff,
            domain,
            bootstrap,
            peer,
            peer_port,
            engine_ids,
            bytes_per_token,
        },
    )
}

fn load(rank: u16) -> impl Strategy<Value = RankLoad> {
    let counts = (option::of(0u32..1 << 20), option::of(0u32..1 << 20), option::of(0u64..1 << 40));
    let shares =
        (option::of(0f32..=1.0), option::of(0f32..1e6), option::of(0f32..1e6), option::of(0f32..=1.0));
    let seconds = || option::of(0f32..1e6);
    let means = (seconds(), seconds(), seconds(), option::of(0f32..1e6), option::of(0f32..1e6));
    let more = (option::of(0f32..=1.0), option::of(0f32..=1.0), option::of(0f32..=1.0));
    (any::<u64>(), counts, shares, option::of(any::<u64>()), option::of(any::<u64>()), means, more).prop_map(
        move |(taken_us, counts, shares, prompt, generation, means, more)| RankLoad {
            rank,
            taken_us,
            running: counts.0,
            waiting: counts.1,
            kv_usage: shares.0,
            kv_total_tokens: counts.2,
            prompt_tokens_total: prompt,
            generation_tokens_total: generation,
            prompt_tokens_per_s: shares.1,
            generation_tokens_per_s: shares.2,
            cache_hit_rate: shares.3,
            host_kv_usage: more.0,
            queue_time_s: means.0,
            prefill_time_s: means.1,
            decode_time_s: means.2,
            request_prompt_tokens: means.3,
            request_generation_tokens: means.4,
            busy: more.1,
            utilization: more.2,
        },
    )
}

fn in_flight() -> impl Strategy<Value = InFlight> {
    (target(), 0u32..1 << 20, 0u64..1 << 40, 0u64..1 << 40).prop_map(
        |(target, requests, prefill_tokens, context_tokens)| InFlight {
            target,
            requests,
            prefilling: requests / 2,
            prefill_tokens,
            prefill_us: prefill_tokens / 3,
            context_tokens,
        },
    )
}

fn target_info() -> impl Strategy<Value = TargetInfo> {
    let cache = prop_oneof![
        Just(CacheSource::Placements),
        Just(CacheSource::Events),
        Just(CacheSource::PartialEvents)
    ];
    (target(), any::<bool>(), cache, option::of(costs()), role(), instance()).prop_map(
        |(target, ready, cache, costs, leaning, instance)| TargetInfo {
            target,
            rank: instance.dp_ranks - 1,
            ready,
            cache,
            costs,
            leaning,
            instance,
        },
    )
}

fn costs() -> impl Strategy<Value = Costs> {
    let cost = || 1e-9f32..1e9;
    ((cost(), cost(), cost()), (cost(), cost(), cost()), 0u32..1 << 24, 0u32..1 << 24).prop_map(
        |((prefill, attention, step), (sequence, context, chunk), prefills, decodes)| Costs {
            prefill,
            attention,
            step,
            sequence,
            context,
            chunk,
            prefills,
            decodes,
        },
    )
}

fn target_costs() -> impl Strategy<Value = TargetCosts> {
    (target(), costs()).prop_map(|(target, costs)| TargetCosts { target, costs })
}

fn space() -> impl Strategy<Value = HashSpace> {
    prop_oneof![Just(HashSpace::Bytes), Just(HashSpace::Tokens)]
}

fn cache_op() -> impl Strategy<Value = CacheOp> {
    prop_oneof![
        (vec(1u64.., 0..4), path()).prop_map(|(above, blocks)| CacheOp::Store { above, blocks }),
        (vec(1u64.., 0..4), path()).prop_map(|(above, blocks)| CacheOp::Remove { above, blocks }),
        Just(CacheOp::Clear),
    ]
}

fn feedback() -> impl Strategy<Value = TargetFeedback> {
    (target(), space(), 0u32..1 << 20, 0u64..1 << 40).prop_map(|(target, space, answers, tokens)| {
        TargetFeedback {
            target,
            space,
            answers,
            predicted_tokens: tokens / 2,
            cached_tokens: tokens / 3,
            prompt_tokens: tokens,
            prompt_bytes: tokens,
        }
    })
}

fn pace() -> impl Strategy<Value = TargetPace> {
    (target(), 0u32..1 << 20, 0u32..100).prop_map(|(target, answers, percent)| TargetPace {
        target,
        answers,
        late: answers / 100 * percent,
    })
}

fn index_op() -> impl Strategy<Value = IndexOp> {
    prop_oneof![
        (target(), 1u64.., 0u32..100, path()).prop_map(|(target, anchor, skip, blocks)| IndexOp::Place {
            target,
            anchor,
            skip,
            blocks
        }),
        (target(), 1u64.., 0u32..100, path()).prop_map(|(target, anchor, skip, blocks)| IndexOp::Store {
            target,
            anchor,
            skip,
            blocks
        }),
        (target(), 1u64.., 0u32..100, 0u32..100).prop_map(|(target, run, from, len)| IndexOp::Remove {
            target,
            run,
            from,
            len
        }),
        target().prop_map(|target| IndexOp::Clear { target }),
        (1u64..).prop_map(|run| IndexOp::Evict { run }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        target_info().prop_map(|info| Op::Target(Box::new(info))),
        target().prop_map(|target| Op::TargetGone { target }),
        index_op().prop_map(Op::Index),
        Just(Op::EpochSettled),
        target_costs().prop_map(Op::Costs),
    ]
}

fn run() -> impl Strategy<Value = Run> {
    (any::<u64>(), path(), vec(target(), 0..4)).prop_map(|(parent, blocks, targets)| {
        let depth = blocks.len() as u32;
        let missing = if depth > 1 { vec![(0, 1)] } else { Vec::new() };
        let holders =
            targets.into_iter().map(|target| Holding { target, depth, missing: missing.clone() }).collect();
        Run { parent, blocks, holders }
    })
}

fn message() -> impl Strategy<Value = Message> {
    let role = prop_oneof![Just(Role::Scheduler), Just(Role::Gateway), Just(Role::Agent)];
    let hello = (role, text(), any::<u64>(), 0u16..5, text(), option::of(any::<(u64, u64)>())).prop_map(
        |(role, name, incarnation, protocol_min, software, have)| Hello {
            role,
            name,
            incarnation,
            protocol_min,
            protocol_max: protocol_min + 1,
            software,
            have,
        },
    );
    let loads = vec(load(0), 0..4).prop_map(|mut loads| {
        for (rank, load) in loads.iter_mut().enumerate() {
            load.rank = rank as u16;
        }
        loads
    });
    let placement = (target(), path(), option::of(0u32..4), space())
        .prop_map(|(target, path, keep, space)| Placement { target, path, keep, space });
    let events = (any::<u64>(), 0u16..1024, any::<(bool, bool)>(), vec(cache_op(), 0..5)).prop_map(
        |(incarnation, rank, (partial, replace), ops)| CacheEvents {
            incarnation,
            rank,
            partial,
            replace,
            ops,
        },
    );
    let engine = (target(), load(3)).prop_map(|(target, load)| EngineLoad { target, load });
    let peer =
        (any::<u32>(), any::<u64>(), vec(in_flight(), 0..4)).prop_map(|(gateway, version, targets)| {
            PeerLoad { gateway, version, full: version % 2 == 0, targets }
        });
    prop_oneof![
        hello.prop_map(Message::Hello),
        any::<(u64, u64)>().prop_map(|(epoch, cluster_seed)| Message::Welcome(Welcome {
            protocol: 1,
            epoch,
            cluster_seed,
            heartbeat_ms: 1000,
            block_tokens: 64
        })),
        text().prop_map(|reason| Message::Refuse(Refuse { code: RefuseCode::Invalid, reason })),
        any::<(u64, u64)>().prop_map(|(id, sent_us)| Message::Ping(Ping { id, sent_us })),
        any::<(u64, u64, u64)>().prop_map(|(id, ping_sent_us, received_us)| Message::Pong(Pong {
            id,
            ping_sent_us,
            received_us
        })),
        instance().prop_map(|instance| Message::Register(Register { instance })),
        (any::<u64>(), any::<bool>(), option::of(text()), loads).prop_map(
            |(incarnation, ready, reason, ranks)| Message::Report(Report {
                incarnation,
                ready,
                reason,
                ranks
            })
        ),
        (any::<u64>(), any::<bool>(), vec(in_flight(), 0..5)).prop_map(|(version, full, targets)| {
            Message::GatewayLoad(GatewayLoad { version, full, targets })
        }),
        vec(placement, 0..5).prop_map(|items| Message::Placements(Placements { items })),
        (any::<u32>(), any::<(bool, bool)>(), vec(target_info(), 0..3), vec(run(), 0..4)).prop_map(
            |(part, (last, settled), targets, runs)| Message::Snapshot(SnapshotChunk {
                part,
                last,
                settled,
                targets,
                runs
            })
        ),
        vec(op(), 0..6).prop_map(|ops| Message::Delta(Delta { ops })),
        events.prop_map(Message::CacheEvents),
        (vec(feedback(), 0..5), vec(target_costs(), 0..5), vec(pace(), 0..5))
            .prop_map(|(items, costs, paces)| Message::Feedback(Feedback { items, costs, paces })),
        (text(), 0u16..1024, any::<u64>(), vec(path(), 0..4), any::<bool>()).prop_map(
            |(instance, rank, incarnation, paths, last)| Message::Recollection(Recollection {
                instance,
                rank,
                incarnation,
                paths,
                last
            })
        ),
        any::<(u64, u64)>().prop_map(|(epoch, sequence)| Message::Resume(Resume { epoch, sequence })),
        (vec(engine, 0..3), vec(peer, 0..3), vec(any::<u32>(), 0..3), option::of(vec(any::<u32>(), 0..3)))
            .prop_map(|(engines, gateways, gone, live)| Message::LoadUpdate(LoadUpdate {
                engines,
                gateways,
                gone,
                live
            })),
    ]
}

fn stamp() -> impl Strategy<Value = Stamp> {
    any::<(u64, u64, u64, u64)>().prop_map(|(epoch, base_seq, new_seq, created_us)| Stamp {
        epoch,
        base_seq,
        new_seq,
        created_us,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_frame_reads_back(message in message(), stamp in stamp()) {
        let frame = message.encode(stamp).unwrap();
        let bytes = frame.to_bytes();
        prop_assert_eq!(bytes.len(), frame.wire_len());
        let back = Frame::from_bytes(&bytes).unwrap();
        prop_assert_eq!(back.header, frame.header);
        prop_assert_eq!(back.header.stamp(), stamp);
        prop_assert_eq!(back.message().unwrap(), message);
    }

    #[test]
    fn a_cut_frame_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.encode(Stamp::default()).unwrap().to_bytes();
        let cut = cut.index(bytes.len());
        let refused = matches!(Frame::from_bytes(&bytes[..cut]), Err(FrameError::Truncated { .. }));
        prop_assert!(refused);
        // A payload cut on its own, with a header that agrees with it, must not panic either.
        if let Some(payload) = bytes[..cut].get(Header::LEN..) {
            let mut header = Header::decode(bytes[..Header::LEN].try_into().unwrap()).unwrap();
            header.length = payload.len() as u32;
            let mut whole = header.encode().to_vec();
            whole.extend_from_slice(payload);
            let _ = Frame::from_bytes(&whole).unwrap().message();
        }
    }

    #[test]
    fn flipped_bytes_never_panic(
        message in message(),
        flips in vec((any::<prop::sample::Index>(), 1u8..), 1..6),
    ) {
        let mut bytes = message.encode(Stamp::default()).unwrap().to_bytes();
        for (at, mask) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        if let Ok(frame) = Frame::from_bytes(&bytes)
            && let Ok(message) = frame.message()
        {
            // What survives is a message that this side could have sent.
            prop_assert!(message.encode(Stamp::default()).is_ok());
        }
    }

    #[test]
    fn noise_never_panics(kind in 0u16..20, payload in vec(any::<u8>(), 0..200)) {
        let mut bytes = b"FRL1".to_vec();
        bytes.extend_from_slice(&PROTOCOL.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.resize(Header::LEN, 0);
        bytes.extend_from_slice(&payload);
        if let Ok(frame) = Frame::from_bytes(&bytes) {
            let _ = frame.message();
        }
    }
}

#[test]
fn headers_from_elsewhere_are_refused() {
    let good = encode(&Ping { id: 1, sent_us: 2 }, Stamp::default()).unwrap();
    let bytes: [u8; Header::LEN] = good.header.encode();
    let cases: &[(usize, &[u8], FrameError)] = &[
        (0, b"HTTP", FrameError::BadMagic(u32::from_le_bytes(*b"HTTP"))),
        (4, &[9, 0], FrameError::Version { theirs: 9, ours: PROTOCOL }),
        (4, &[0, 0], FrameError::Version { theirs: 0, ours: PROTOCOL }),
        (6, &[0, 0], FrameError::UnknownKind(0)),
        (6, &[99, 0], FrameError::UnknownKind(99)),
        (
            8,
            &[0xff, 0xff, 0xff, 0xff],
            FrameError::TooLong { kind: Kind::Ping, len: u32::MAX as usize, max: max_len(Kind::Ping) },
        ),
        (12, &[1, 0, 0, 0], FrameError::Invalid { kind: Kind::Ping, why: "flags: 0x1 is not 0".into() }),
    ];
    assert!(Header::decode(&bytes).is_ok());
    for (at, patch, want) in cases {
        let mut bad = bytes;
        bad[*at..at + patch.len()].copy_from_slice(patch);
        assert_eq!(Header::decode(&bad).unwrap_err(), *want);
    }
    let long = [good.to_bytes(), vec![0]].concat();
    assert!(matches!(Frame::from_bytes(&long), Err(FrameError::Invalid { kind: Kind::Ping, .. })));
    assert!(matches!(good.access::<Pong>(), Err(FrameError::Invalid { kind: Kind::Ping, .. })));
    assert_eq!(good.access::<Ping>().unwrap().sent_us, 2);
}

#[test]
fn kinds_keep_their_numbers() {
    let numbers: Vec<u16> = Kind::ALL.iter().map(|kind| *kind as u16).collect();
    assert_eq!(numbers, (1..=16).collect::<Vec<_>>());
    assert!(Kind::ALL.iter().all(|kind| Kind::from_number(*kind as u16) == Some(*kind)));
}

#[test]
fn an_oversized_body_is_not_sent() {
    let path = vec![7; MAX_PATH];
    let items = vec![Placement { target: 0, path, keep: None, space: HashSpace::Bytes }; 3];
    let error = encode(&Placements { items }, Stamp::default()).unwrap_err();
    assert!(matches!(error, FrameError::TooLong { kind: Kind::Placements, .. }), "{error}");
}

fn plain_instance() -> InstanceInfo {
    InstanceInfo {
        name: "engine-0".into(),
        address: "10.0.0.1:8000".into(),
        host: "a".into(),
        incarnation: 1,
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: "m".into(), max_model_len: None, parent: None }],
        role: ServingRole::Both,
        transfer: None,
        dp_ranks: 1,
        block_size: Some(16),
        kv_blocks: None,
        max_num_seqs: None,
        labels: Vec::new(),
    }
}

fn transfer_of(info: &mut InstanceInfo) -> &mut Transfer {
    info.transfer.get_or_insert_with(|| Transfer::new(Handoff::NixlPull))
}

#[test]
fn lies_about_an_instance_are_named() {
    type Change = fn(&mut InstanceInfo);
    let cases: &[(Change, &str)] = &[
        (|i| i.name.clear(), "instance.name: is empty"),
        (|i| i.name = "x".repeat(257), "instance.name: 257 bytes are more than 256"),
        (|i| i.name = "a\nb".into(), "instance.name: contains the control character 0x0a"),
        (|i| i.address = "nowhere".into(), "instance.address: \"nowhere\" is not host:port"),
        (|i| i.address = "h:+80".into(), "instance.address: \"h:+80\" is not host:port"),
        (|i| i.address = "h:0".into(), "instance.address: \"h:0\" is not host:port"),
        (|i| i.address = "h:70000".into(), "instance.address: \"h:70000\" is not host:port"),
        (|i| i.address = "a/b:80".into(), "instance.address: \"a/b:80\" is not host:port"),
        (|i| i.address = "[::zz]:80".into(), "instance.address: \"[::zz]:80\" is not host:port"),
        (|i| i.dp_ranks = 0, "instance.dp_ranks: 0 is not within 1 to 1024"),
        (|i| i.dp_ranks = 60_000, "instance.dp_ranks: 60000 is not within 1 to 1024"),
        (|i| i.block_size = Some(0), "instance.block_size: 0 is not within 1 to 65536"),
        (|i| i.kv_blocks = Some(u64::MAX), "instance.kv_blocks: 18446744073709551615"),
        (|i| i.models[0].name.clear(), "instance.models.name: is empty"),
        (|i| i.models = vec![i.models[0].clone(); 513], "instance.models: 513"),
        (
            |i| transfer_of(i).bootstrap = Some("x".into()),
            "instance.transfer.bootstrap: \"x\" is not host:port",
        ),
        (|i| transfer_of(i).peer = Some("x:0".into()), "instance.transfer.peer: \"x:0\" is not host:port"),
        (|i| transfer_of(i).peer_port = Some(0), "instance.transfer.peer_port: 0 is not"),
        (|i| transfer_of(i).domain = "\n".into(), "instance.transfer.domain: contains the control character"),
        (|i| transfer_of(i).engine_ids = vec!["e".into(); 1_025], "instance.transfer.engine_ids: 1025"),
        (|i| transfer_of(i).bytes_per_token = Some(0), "instance.transfer.bytes_per_token: 0 is not"),
    ];
    assert!(encode(&Register { instance: plain_instance() }, Stamp::default()).is_ok());
    for address in ["[::1]:80", "localhost:8000", "my-host_1.local:1"] {
        let instance = InstanceInfo { address: address.into(), ..plain_instance() };
        assert!(encode(&Register { instance }, Stamp::default()).is_ok(), "{address}");
    }
    for (change, want) in cases {
        let mut instance = plain_instance();
        change(&mut instance);
        let error = encode(&Register { instance }, Stamp::default()).unwrap_err().to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
}

#[test]
fn lies_about_costs_are_named() {
    let honest = Costs {
        prefill: 30.0,
        attention: 0.001,
        step: 6_000.0,
        sequence: 30.0,
        context: 0.02,
        chunk: 1_024.0,
        prefills: 1,
        decodes: 1,
    };
    let told = |costs| Feedback { costs: vec![TargetCosts { target: 0, costs }], ..Feedback::default() };
    assert!(encode(&told(honest), Stamp::default()).is_ok());
    let cases = [
        (Costs { prefill: f32::NAN, ..honest }, "costs.prefill: NaN is not within"),
        (Costs { attention: f32::INFINITY, ..honest }, "costs.attention: inf"),
        (Costs { step: 0.0, ..honest }, "costs.step: 0 is not within"),
        (Costs { sequence: -1.0, ..honest }, "costs.sequence: -1"),
        (Costs { context: 1e-12, ..honest }, "costs.context: "),
        (Costs { chunk: 2e9, ..honest }, "costs.chunk: 2000000000"),
        (Costs { prefills: u32::MAX, ..honest }, "costs.prefills: 4294967295"),
        (Costs { decodes: (1 << 24) + 1, ..honest }, "costs.decodes: 16777217"),
    ];
    for (costs, want) in cases {
        let error = encode(&told(costs), Stamp::default()).unwrap_err().to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
    let crowd = Feedback { costs: vec![told(honest).costs[0]; 4_097], ..Feedback::default() };
    assert!(encode(&crowd, Stamp::default()).unwrap_err().to_string().contains("feedback.costs: 4097"));
}

#[test]
fn lies_about_paces_are_named() {
    let honest = TargetPace { target: 1, answers: 9, late: 9 };
    let told = |pace| Feedback { paces: vec![pace], ..Feedback::default() };
    assert!(encode(&told(honest), Stamp::default()).is_ok());
    let cases = [
        (TargetPace { late: 10, ..honest }, "feedback.paces.late: 10 is not within 0 to 9"),
        (TargetPace { answers: (1 << 24) + 1, ..honest }, "feedback.paces.answers: 16777217"),
        (TargetPace { target: TargetId::new(5_000, 1).pack(), ..honest }, "feedback.paces.target: slot 5000"),
    ];
    for (pace, want) in cases {
        let error = encode(&told(pace), Stamp::default()).unwrap_err().to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
    let full = Feedback { paces: vec![honest; 4_096], ..Feedback::default() };
    assert!(encode(&full, Stamp::default()).is_ok());
    let crowd = Feedback { paces: vec![honest; 4_097], ..Feedback::default() };
    assert!(encode(&crowd, Stamp::default()).unwrap_err().to_string().contains("feedback.paces: 4097"));
}

#[test]
fn costs_without_observations_are_the_priors() {
    let told = Costs { prefill: 1.0, step: 2.0, prefills: 0, decodes: 3, ..Costs::PRIOR };
    assert_eq!(told.or_prior(), Costs { step: 2.0, decodes: 3, ..Costs::PRIOR });
    let told = Costs { prefills: 3, decodes: 0, ..told };
    assert_eq!(told.or_prior(), Costs { prefill: 1.0, prefills: 3, ..Costs::PRIOR });
}

#[test]
fn lies_about_load_are_named() {
    let report = |load: RankLoad| Report { incarnation: 1, ready: true, reason: None, ranks: vec![load] };
    let cases = [
        (RankLoad { kv_usage: Some(f32::NAN), ..RankLoad::default() }, "load.kv_usage: NaN"),
        (RankLoad { kv_usage: Some(1.5), ..RankLoad::default() }, "load.kv_usage: 1.5 is not within 0 to 1"),
        (RankLoad { kv_usage: Some(-0.1), ..RankLoad::default() }, "load.kv_usage: -0.1"),
        (
            RankLoad { prompt_tokens_per_s: Some(f32::INFINITY), ..RankLoad::default() },
            "load.prompt_tokens_per_s: inf",
        ),
        (RankLoad { running: Some(u32::MAX), ..RankLoad::default() }, "load.running: 4294967295"),
        (RankLoad { queue_time_s: Some(f32::NAN), ..RankLoad::default() }, "load.queue_time_s: NaN"),
        (RankLoad { decode_time_s: Some(-1.0), ..RankLoad::default() }, "load.decode_time_s: -1"),
        (RankLoad { busy: Some(1.5), ..RankLoad::default() }, "load.busy: 1.5"),
        (RankLoad { utilization: Some(f32::INFINITY), ..RankLoad::default() }, "load.utilization: inf"),
        (RankLoad { host_kv_usage: Some(2.0), ..RankLoad::default() }, "load.host_kv_usage: 2"),
        (RankLoad { request_prompt_tokens: Some(1e12), ..RankLoad::default() }, "load.request_prompt_tokens"),
        (RankLoad { rank: 1024, ..RankLoad::default() }, "load.rank: 1024"),
    ];
    for (load, want) in cases {
        let error = encode(&report(load), Stamp::default()).unwrap_err().to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
    let mut twice = report(RankLoad::default());
    twice.ranks.push(RankLoad::default());
    let error = encode(&twice, Stamp::default()).unwrap_err().to_string();
    assert!(error.contains("rank 0 is listed twice"), "{error}");
}

#[test]
fn index_messages_are_checked() {
    let place = |anchor, skip, blocks| Delta {
        ops: vec![Op::Index(IndexOp::Place { target: 1, anchor, skip, blocks })],
    };
    let text = |delta: Delta| encode(&delta, Stamp::default()).map(drop).map_err(|error| error.to_string());
    assert!(text(place(0, 0, vec![5])).is_ok());
    assert!(text(place(0, 3, vec![5])).unwrap_err().contains("place.skip: 3"));
    assert!(text(place(9, 3, vec![0])).unwrap_err().contains("contains the hash 0"));
    let slot = TargetId::new(5000, 0).pack();
    assert!(text(Delta { ops: vec![Op::TargetGone { target: slot }] }).unwrap_err().contains("slot 5000"));
    let run = Run {
        parent: 0,
        blocks: vec![1, 2],
        holders: vec![Holding { target: 0, depth: 2, missing: vec![(1, 2)] }],
    };
    let chunk = SnapshotChunk { part: 0, last: true, settled: true, targets: Vec::new(), runs: vec![run] };
    let error = encode(&chunk, Stamp::default()).unwrap_err().to_string();
    assert!(error.contains("run.holders.missing.len: 2 is not within 0 to 1"), "{error}");
}
