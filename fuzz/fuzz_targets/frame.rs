//! Frames from a peer: whatever the bytes, an error or a message that could be sent again, never a panic.
#![no_main]

use std::sync::LazyLock;

use fairlead_wire::msg::{
    CacheEvents, CacheOp, CacheSource, Costs, Delta, EngineKind, EngineLoad, Feedback, GatewayLoad, Handoff,
    HashSpace, Hello, Holding, InFlight, IndexOp, InstanceInfo, LoadUpdate, ModelInfo, Op, PeerLoad,
    Placement, Placements, RankLoad, Recollection, Refuse, RefuseCode, Register, Report, Role, Run,
    ServingRole, SnapshotChunk, TargetCosts, TargetFeedback, TargetInfo, TargetPace, Transfer,
};
use fairlead_wire::{Frame, Header, Kind, Message, Stamp, TargetId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(frame) = Frame::from_bytes(data) {
        check(&frame);
    }
    // The same bytes as the payload of every kind, so that the fuzzer need not guess a header.
    for &kind in Kind::ALL {
        let header = Header {
            kind,
            length: data.len() as u32,
            flags: 0,
            epoch: 1,
            base_seq: 0,
            new_seq: 0,
            created_us: 0,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(data);
        if let Ok(frame) = Frame::from_bytes(&bytes) {
            check(&frame);
        }
    }
    // A good frame with some bytes replaced, so that it need not guess an archive either.
    let Some((&which, edits)) = data.split_first() else { return };
    let mut bytes = SAMPLES[usize::from(which) % SAMPLES.len()].clone();
    for edit in edits.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
        bytes[at] = edit[2];
    }
    if let Ok(frame) = Frame::from_bytes(&bytes) {
        check(&frame);
    }
});

fn check(frame: &Frame) {
    if let Ok(message) = frame.message() {
        let again = message.encode(Stamp::default()).expect("a message that was accepted can be sent");
        let back = again.message().expect("and accepted again");
        // Floats are checked to be numbers, so equality is reflexive.
        assert_eq!(back, message);
    }
}

static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let frame = |message: &Message| message.encode(Stamp::default()).expect("samples are valid").to_bytes();
    samples().iter().map(frame).collect()
});

/// One of every kind that has lists, strings or choices in it.
fn samples() -> Vec<Message> {
    let target = TargetId::new(3, 1).pack();
    let instance = InstanceInfo {
        name: "engine-1".into(),
        address: "host:8000".into(),
        host: "a-host-with-a-longer-name".into(),
        incarnation: 7,
        engine: EngineKind::Vllm,
        engine_version: "0.11".into(),
        models: vec![ModelInfo { name: "m".into(), max_model_len: Some(4096), parent: Some("base".into()) }],
        role: ServingRole::Both,
        transfer: Some(Transfer {
            bootstrap: Some("host:8998".into()),
            engine_ids: vec!["e".into()],
            ..Transfer::new(Handoff::Mooncake)
        }),
        dp_ranks: 2,
        block_size: Some(16),
        kv_blocks: Some(9000),
        max_num_seqs: None,
        labels: vec![("zone".into(), "z".into())],
    };
    let load = RankLoad { rank: 0, running: Some(2), kv_usage: Some(0.5), ..RankLoad::default() };
    let costs = Costs {
        prefill: 33.0,
        attention: 0.001,
        step: 6_000.0,
        sequence: 30.0,
        context: 0.02,
        chunk: 1_024.0,
        prefills: 20,
        decodes: 30,
    };
    let info = TargetInfo {
        target,
        rank: 1,
        ready: true,
        cache: CacheSource::Events,
        costs: Some(costs),
        leaning: ServingRole::Decode,
        instance: instance.clone(),
    };
    let flight = InFlight {
        target,
        requests: 2,
        prefilling: 1,
        prefill_tokens: 100,
        prefill_us: 3_300,
        context_tokens: 50,
    };
    let holder = Holding { target, depth: 3, missing: vec![(1, 1)] };
    let ops = vec![
        Op::Target(Box::new(info.clone())),
        Op::Index(IndexOp::Place { target, anchor: 11, skip: 2, blocks: vec![21, 22, 23] }),
        Op::Index(IndexOp::Store { target, anchor: 11, skip: 1, blocks: vec![31, 32] }),
        Op::Index(IndexOp::Remove { target, run: 11, from: 1, len: 1 }),
        Op::Index(IndexOp::Clear { target }),
        Op::Index(IndexOp::Evict { run: 21 }),
        Op::TargetGone { target },
        Op::EpochSettled,
        Op::Costs(TargetCosts { target, costs }),
    ];
    vec![
        Message::Hello(Hello {
            role: Role::Gateway,
            name: "gateway-1".into(),
            incarnation: 1,
            protocol_min: 1,
            protocol_max: 1,
            software: "x".into(),
            have: Some((1, 2)),
        }),
        Message::Refuse(Refuse { code: RefuseCode::Invalid, reason: "name: empty".into() }),
        Message::Register(Register { instance }),
        Message::Report(Report {
            incarnation: 7,
            ready: false,
            reason: Some("starting".into()),
            ranks: vec![load, RankLoad { rank: 1, ..load }],
        }),
        Message::GatewayLoad(GatewayLoad { version: 4, full: true, targets: vec![flight] }),
        Message::Placements(Placements {
            items: vec![Placement {
                target,
                path: vec![11, 12, 13],
                keep: Some(1),
                space: HashSpace::Tokens,
            }],
        }),
        Message::CacheEvents(CacheEvents {
            incarnation: 7,
            rank: 1,
            partial: false,
            replace: true,
            ops: vec![
                CacheOp::Clear,
                CacheOp::Store { above: vec![16, 17], blocks: vec![18, 19] },
                CacheOp::Remove { above: vec![], blocks: vec![16] },
            ],
        }),
        Message::Feedback(Feedback {
            items: vec![TargetFeedback {
                target,
                answers: 2,
                cached_tokens: 64,
                ..TargetFeedback::default()
            }],
            costs: vec![TargetCosts { target, costs }],
            paces: vec![TargetPace { target, answers: 9, late: 2 }],
        }),
        Message::Delta(Delta { ops }),
        Message::Snapshot(SnapshotChunk {
            part: 0,
            last: true,
            settled: true,
            targets: vec![info],
            runs: vec![Run { parent: 0, blocks: vec![11, 12, 13], holders: vec![holder] }],
        }),
        Message::Recollection(Recollection {
            instance: "engine-1".into(),
            rank: 1,
            incarnation: 7,
            paths: vec![vec![11, 12], vec![11, 13]],
            last: true,
        }),
        Message::LoadUpdate(LoadUpdate {
            engines: vec![EngineLoad { target, load }],
            gateways: vec![PeerLoad { gateway: 1, version: 2, full: false, targets: vec![flight] }],
            gone: vec![5],
            live: Some(vec![1, 2]),
        }),
    ]
}
