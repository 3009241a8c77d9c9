use super::*;
use crate::record::Acceptance;

fn release() -> Release {
    Release {
        key: KeyId([1; 32]),
        generation: 2,
        epoch: 3,
        purpose: Use::Sign,
        uses: 1,
        requester: DeviceId([4; 32]),
        head: Head::default(),
        nonce: [5; NONCE_BYTES],
    }
}

fn released() -> Released {
    Released {
        key: KeyId([1; 32]),
        generation: 2,
        epoch: 3,
        shard: ShardId([6; 32]),
        index: 9,
        nonce: [5; NONCE_BYTES],
        head: Head::default(),
        sealed: vec![7; 96],
    }
}

fn answers() -> Vec<Reply> {
    vec![
        Reply::Refused(Refused::new(Cause::NotFresh, "why", Head::default())),
        Reply::Released(released()),
        Reply::Accepted(Acceptance { device: DeviceId([4; 32]), signature: vec![1; 64] }),
        Reply::Fresh(Statement {
            witness: DeviceId([4; 32]),
            head: Head::default(),
            time_ms: 1,
            signature: vec![1; 64],
        }),
        Reply::Noted,
    ]
}

#[test]
fn messages_come_back_as_they_were() {
    let asks = [
        Ask::Release(release()),
        Ask::Fresh(FreshAsk { nonce: [1; 32], head: Head::default() }),
        Ask::Alarm(Alarm { entry: vec![1; 1000] }),
        Ask::VaultPolicy,
    ];
    for ask in asks {
        let request = Request { id: 77, ask };
        assert_eq!(Request::from_bytes(&request.to_bytes()).as_ref(), Ok(&request));
    }
    for reply in answers() {
        let answer = Answer { id: u64::MAX, reply };
        assert_eq!(Answer::from_bytes(&answer.to_bytes()).as_ref(), Ok(&answer));
    }
}

/// What is written here is on the wire for ever (`docs/formats/peer.md` shows the same bytes).
#[test]
fn known_encodings() {
    let hello = Hello {
        version: 1,
        network: NetworkId([1; 32]),
        device: DeviceId([2; 32]),
        ephemeral: [3; 32],
        head: Head { size: 4, root: crate::ids::Hash([5; 32]) },
    };
    let byte = |b: &str| format!("5820{}", b.repeat(32));
    assert_eq!(
        hex::encode(hello.frame()),
        format!("0000008c8501{}{}{}8204{}", byte("01"), byte("02"), byte("03"), byte("05"))
    );
    let fresh = Request { id: 7, ask: Ask::Fresh(FreshAsk { nonce: [1; 32], head: Head::default() }) };
    assert_eq!(
        hex::encode(fresh.to_bytes()),
        format!("8207820281 82{}8200{}", byte("01"), byte("00")).replace(' ', "")
    );
    let noted = Answer { id: 7, reply: Reply::Noted };
    assert_eq!(hex::encode(noted.to_bytes()), "8207820480");
}

#[test]
fn bounds_are_kept() {
    let request = |ask| Request::from_bytes(&Request { id: 1, ask }.to_bytes());
    for uses in [0, USES_MAX + 1] {
        let refused = request(Ask::Release(Release { uses, ..release() }));
        assert_eq!(refused, Err(PeerError::Bounds("number of uses")));
    }
    assert!(request(Ask::Alarm(Alarm { entry: vec![0; crate::entry::ENTRY_BYTES_MAX + 1] })).is_err());
    let answer = |reply| Answer::from_bytes(&Answer { id: 1, reply }.to_bytes());
    let long = Released { sealed: vec![0; SEALED_SHARE_BYTES_MAX + 1], ..released() };
    assert_eq!(answer(Reply::Released(long)), Err(PeerError::Bounds("sealed share")));
    let chatty = Refused { text: "x".repeat(TEXT_BYTES_MAX + 1), ..Refused::new(Cause::Busy, "", Head::default()) };
    assert_eq!(answer(Reply::Refused(chatty)), Err(PeerError::Bounds("text")));
    let cut = Refused::new(Cause::Busy, "ü".repeat(TEXT_BYTES_MAX), Head::default());
    assert!(answer(Reply::Refused(cut)).is_ok(), "our own texts are cut at a character");
    for (header, length) in [
        ([0, 0, 0, 0], None),
        ([0, 0, 0, 1], Some(1)),
        ([0, 0, 0xc0, 0], Some(FRAME_BYTES_MAX)),
        ([0, 0, 0xc0, 1], None),
        ([0x40, 0, 0, 0], None),
        ([0xff; 4], None),
    ] {
        assert_eq!(frame_length(header).ok(), length, "{header:?}");
    }
}

#[test]
fn a_greeting_is_of_our_network_and_of_the_authenticated_device() {
    let (network, device) = (NetworkId([1; 32]), DeviceId([2; 32]));
    let hello = Hello { version: VERSION, network, device, ephemeral: [0; 32], head: Head::default() };
    assert!(hello.check(&network, &device).is_ok());
    assert!(matches!(hello.check(&NetworkId([9; 32]), &device), Err(PeerError::Network(_))));
    assert!(matches!(hello.check(&network, &DeviceId([9; 32])), Err(PeerError::Device { .. })));
    let newer = Hello { version: 2, ..hello };
    assert_eq!(Hello::from_bytes(&newer.to_bytes()), Err(PeerError::Version(2)));
}

/// A sealed share that is moved to another request, holder, purpose or shard must not open: everything is in the associated data.
#[test]
fn associated_data_differs_wherever_anything_does() {
    let (network, holder, shard) = (NetworkId([1; 32]), DeviceId([8; 32]), ShardId([6; 32]));
    let mut all = vec![
        release().aad(&network, &holder, &shard, 1),
        release().aad(&NetworkId([2; 32]), &holder, &shard, 1),
        release().aad(&network, &DeviceId([9; 32]), &shard, 1),
        release().aad(&network, &holder, &ShardId([7; 32]), 1),
        release().aad(&network, &holder, &shard, 2),
    ];
    let changes: [fn(&mut Release); 6] = [
        |r| r.key = KeyId([2; 32]),
        |r| r.generation += 1,
        |r| r.epoch += 1,
        |r| r.purpose = Use::Decrypt,
        |r| r.requester = DeviceId([5; 32]),
        |r| r.nonce[0] ^= 1,
    ];
    for change in changes {
        let mut other = release();
        change(&mut other);
        all.push(other.aad(&network, &holder, &shard, 1));
    }
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn an_answer_to_another_request_is_told_apart() {
    assert!(released().answers(&release()));
    let changes: [fn(&mut Released); 4] =
        [|r| r.key = KeyId([2; 32]), |r| r.generation += 1, |r| r.epoch += 1, |r| r.nonce[0] ^= 1];
    for change in changes {
        let mut other = released();
        change(&mut other);
        assert!(!other.answers(&release()));
    }
}

/// The largest and deepest of all messages: a key record with everything in it, inside an ask, inside a request.
#[test]
fn an_offer_of_the_largest_key_fits_into_a_frame() {
    let attribute = |kind| record::Attribute { kind, value: vec![1; 60] };
    let shard = |n: u8| record::ShardRecord {
        id: ShardId([n; 32]),
        device: DeviceId([n; 32]),
        index: u32::MAX,
        valid_from_ms: u64::MAX - 1,
        valid_until_ms: u64::MAX,
    };
    let key = record::Key {
        id: KeyId([1; 32]),
        token: Default::default(),
        key_type: "generic:4096".into(),
        t: 63,
        generation: 1,
        epoch: 1,
        assemblers: (0..=255).map(|n| DeviceId([n; 32])).collect(),
        attributes: (0..64).map(attribute).collect(),
        public_attributes: Some((0..64).map(attribute).collect()),
        origin: record::Origin::Imported,
        commitments: vec![crate::ids::Hash([2; 32]); 63],
        shards: (0..63).map(shard).collect(),
        key_commitment: Default::default(),
        wrapped: Some(vec![3; crate::deal::WRAPPED_BYTES_MAX]),
        policy: record::KeyPolicy {
            allow: vec!["user=somebody".into(); 16],
            uses: u32::MAX,
            residency: record::Residency { window_seconds: u32::MAX },
            vault_opening: record::VaultOpening::PerRelease,
            iv_modes: 7,
            rate: 0,
        },
        schedule: record::Schedule { refresh_seconds: u64::MAX, refresh_uses: u64::MAX },
        created_ms: u64::MAX,
        deadline_ms: u64::MAX,
        acceptances: vec![],
    };
    let offer = |key: &record::Key| Request {
        id: u64::MAX,
        ask: Ask::Offer(Offer { key: key.clone(), sealed: vec![0; SEALED_SHARE_BYTES_MAX] }),
    };
    let bytes = offer(&key).to_bytes();
    assert!(bytes.len() <= FRAME_BYTES_MAX, "{}", bytes.len());
    assert_eq!(Request::from_bytes(&bytes).as_ref(), Ok(&offer(&key)));
    let accepted =
        record::Key { acceptances: vec![Acceptance { device: DeviceId([1; 32]), signature: vec![0; 64] }], ..key };
    assert!(Request::from_bytes(&offer(&accepted).to_bytes()).is_err());
}

proptest::proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let _ = (Hello::from_bytes(&bytes), Request::from_bytes(&bytes), Answer::from_bytes(&bytes));
    }

    #[test]
    fn a_flipped_bit_is_another_message_or_none(at in 0..2000usize, bit in 0..8u8) {
        let request = Request { id: 1, ask: Ask::Release(release()) };
        let mut bytes = request.to_bytes();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(other) = Request::from_bytes(&bytes) {
            proptest::prop_assert_ne!(&other, &request);
            proptest::prop_assert_eq!(other.to_bytes(), bytes);
        }
    }
}
