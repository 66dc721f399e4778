//! Requests and responses, without a network.

use super::*;

fn service() -> Service {
    let mut documents = InstanceDocuments {
        user_data: Some(b"#!/bin/sh\n\xff".to_vec()),
        ..InstanceDocuments::example()
    };
    documents.tags.insert("a/b".to_owned(), "no".to_owned());
    Service::new(documents, Clock::monotonic())
}

/// Status and body.
fn ask(service: &mut Service, request: &str) -> (String, Vec<u8>) {
    let mut bytes = request.replace('\n', "\r\n").into_bytes();
    let answer = service.take_request(&mut bytes).expect("a whole request").bytes;
    assert!(bytes.is_empty(), "the request was not taken whole");
    let head = find(&answer, b"\r\n\r\n").unwrap();
    let status = String::from_utf8(answer[9..12].to_vec()).unwrap();
    (status, answer[head + 4..].to_vec())
}

fn token(service: &mut Service) -> String {
    let (status, body) = ask(
        service,
        &format!("PUT /latest/api/token HTTP/1.1\n{TTL_HEADER}: 60\n\n"),
    );
    assert_eq!(status, "200");
    String::from_utf8(body).unwrap()
}

fn get(service: &mut Service, path: &str) -> (String, String) {
    let token = token(service);
    let (status, body) = ask(
        service,
        &format!("GET {path} HTTP/1.1\n{TOKEN_HEADER}: {token}\n\n"),
    );
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn documents_are_found_and_folders_listed() {
    let mut service = service();
    let cases = [
        ("/latest/meta-data/instance-id", "i-0123456789abcdef0"),
        ("/2021-03-23/meta-data/ami-id", "ami-0123456789abcdef0"),
        ("/latest/meta-data/public-keys/", "0=mine"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        (
            "/latest/meta-data/public-keys/0/openssh-key",
            "ssh-ed25519 AAAA me\n",
        ),
        ("/latest/meta-data/tags/instance/", "Name"),
        ("/latest/meta-data/tags/instance/Name", "web"),
        ("/latest/meta-data/network/interfaces/macs", "02:00:00:00:00:0a/"),
        (
            "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:0a/subnet-ipv4-cidr-block",
            "10.0.2.0/24",
        ),
        ("/latest/meta-data/block-device-mapping/root", "/dev/vda"),
        ("/latest", "dynamic/\nmeta-data/\nuser-data"),
        // As clients write them.
        ("/latest/meta-data/instance-id/", "i-0123456789abcdef0"),
        ("/latest/meta-data/tags/instance/Name/", "web"),
        ("/latest//meta-data//ami-launch-index", "0"),
        ("/latest/meta-data/mac?x=1", "02:00:00:00:00:0a"),
        (
            "/latest/meta-data/network/interfaces/macs/02%3a00%3A00:00:00:0a/device-number",
            "0",
        ),
    ];
    for (path, expected) in cases {
        assert_eq!(
            get(&mut service, path),
            ("200".to_owned(), expected.to_owned()),
            "{path}"
        );
    }
    let (_, listing) = get(&mut service, "/latest/meta-data/");
    for name in [
        "ami-id",
        "block-device-mapping/",
        "public-keys/",
        "placement/",
        "mac",
    ] {
        assert!(
            listing.lines().any(|line| line == name),
            "{name} is missing in {listing}"
        );
    }
}

#[test]
fn unknown_paths_are_not_found() {
    let mut service = service();
    for path in [
        "/latest/meta-data/iam",
        "/latest/meta-data/iam/info",
        "/latest/meta-data/iam/security-credentials/",
        "/latest/meta-data/autoscaling/target-lifecycle-state",
        "/latest/meta-data/kernel-id",
        "/latest/meta-data/public-hostname",
        "/latest/meta-data/public-ipv4",
        "/latest/meta-data/spot/instance-action",
        "/latest/meta-data/tags/instance/a/b",
        "/latest/meta-data/instance-id/more",
        "/latest/meta",
        "/3000-01-01/meta-data/",
        "/latest/nothing",
    ] {
        assert_eq!(get(&mut service, path).0, "404", "{path}");
    }
}

#[test]
fn user_data_comes_as_it_was_given() {
    let mut service = service();
    let token = token(&mut service);
    for path in ["/latest/user-data", "/latest/user-data/"] {
        let (status, body) = ask(
            &mut service,
            &format!("GET {path} HTTP/1.1\n{TOKEN_HEADER}: {token}\n\n"),
        );
        assert_eq!(
            (status.as_str(), body.as_slice()),
            ("200", b"#!/bin/sh\n\xff".as_slice())
        );
    }
}

/// What PyPI's ec2-metadata, botocore's fetchers and cloud-init ask for, as they write it. A question mark
/// stands for 17 digits.
#[test]
fn paths_that_libraries_request_exist() {
    let mut service = service();
    let interface = "network/interfaces/macs/02:00:00:00:00:0a";
    let cases = [
        ("ami-manifest-path", "(unknown)"),
        ("events/maintenance/scheduled", "[]"),
        ("hibernation/configured", "false"),
        ("instance-action", "none"),
        ("instance-life-cycle", "on-demand"),
        ("placement/availability-zone", "us-east-1a"),
        ("placement/availability-zone/", "us-east-1a"),
        ("placement/availability-zone-id", "use1-az1"),
        ("placement/region", "us-east-1"),
        ("security-groups", "default"),
        ("services/domain", "amazonaws.com"),
        ("services/partition", "aws"),
        ("~/device-number", "0"),
        ("~/interface-id", "eni-?"),
        ("~/local-hostname", "ip-10-0-2-15"),
        ("~/local-ipv4s", "10.0.2.15"),
        ("~/network-card", "0"),
        ("~/owner-id", "000000000000"),
        ("~/security-group-ids", "sg-?"),
        ("~/security-groups", "default"),
        ("~/subnet-id", "subnet-?"),
        ("~/subnet-ipv4-cidr-block", "10.0.2.0/24"),
        ("~/vpc-id", "vpc-?"),
        ("~/vpc-ipv4-cidr-block", "10.0.2.0/24"),
        ("~/vpc-ipv4-cidr-blocks", "10.0.2.0/24"),
    ];
    for (path, expected) in cases {
        let path = format!("/latest/meta-data/{}", path.replace('~', interface));
        let (status, body) = get(&mut service, &path);
        let matches = match expected.split_once('?') {
            Some((kind, _)) => body.strip_prefix(kind).is_some_and(|digits| {
                digits.len() == 17 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            }),
            None => body == expected,
        };
        assert!(status == "200" && matches, "{path}: {status} {body:?}");
    }
}

#[test]
fn the_identity_document_has_all_its_fields() {
    let (status, body) = get(&mut service(), "/latest/dynamic/instance-identity/document/");
    assert_eq!(status, "200");
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    let expected = serde_json::json!({
        "accountId": "000000000000",
        "architecture": "x86_64",
        "availabilityZone": "us-east-1a",
        "billingProducts": null,
        "devpayProductCodes": null,
        "imageId": "ami-0123456789abcdef0",
        "instanceId": "i-0123456789abcdef0",
        "instanceType": "kiln.1x512",
        "kernelId": null,
        "marketplaceProductCodes": null,
        "pendingTime": "2026-11-30T12:00:00Z",
        "privateIp": "10.0.2.15",
        "ramdiskId": null,
        "region": "us-east-1",
        "version": "2017-09-30",
    });
    assert_eq!(document, expected);
}

/// Every name that a listing has leads to something, as cloud-init's crawl takes for granted.
#[test]
fn a_crawl_of_all_listings_finds_all_that_they_name() {
    let mut service = service();
    let mut folders = vec!["/latest/meta-data/".to_owned(), "/latest/dynamic/".to_owned()];
    let mut documents = 0;
    while let Some(folder) = folders.pop() {
        let (status, listing) = get(&mut service, &folder);
        assert_eq!(status, "200", "{folder}");
        for name in listing.lines() {
            let key = name
                .split_once('=')
                .filter(|(index, _)| index.parse::<u32>().is_ok());
            if let Some((index, _)) = key {
                folders.push(format!("{folder}{index}/"));
            } else if name.ends_with('/') {
                folders.push(format!("{folder}{name}"));
            } else {
                documents += 1;
                assert_eq!(
                    get(&mut service, &format!("{folder}{name}")).0,
                    "200",
                    "{folder}{name}"
                );
            }
        }
    }
    assert!(documents > 30, "{documents}");
}

#[test]
fn tags_that_change_while_the_guest_runs_are_the_next_answer() {
    for asked_before in [false, true] {
        let mut service = service();
        let tags = service.tags();
        if asked_before {
            let (_, name) = get(&mut service, "/latest/meta-data/tags/instance/Name");
            assert_eq!(name, "web");
        }
        tags.set([("role".to_owned(), "db".to_owned())].into());
        let (_, listing) = get(&mut service, "/latest/meta-data/tags/instance");
        assert_eq!(listing, "role");
        let (_, role) = get(&mut service, "/latest/meta-data/tags/instance/role");
        assert_eq!(role, "db");
        let (status, _) = get(&mut service, "/latest/meta-data/tags/instance/Name");
        assert_eq!(status, "404");
        let (status, _) = get(&mut service, "/latest/meta-data/instance-id");
        assert_eq!(status, "200");
    }
}

#[test]
fn an_instance_without_tags_keys_or_an_address_of_ours_lists_none() {
    let mut service = Service::new(InstanceDocuments::default(), Clock::monotonic());
    let tags = get(&mut service, "/latest/meta-data/tags/instance/");
    assert_eq!(tags, ("200".to_owned(), String::new()));
    for path in [
        "public-keys/",
        "local-ipv4",
        "network/interfaces/macs/00:00:00:00:00:00/vpc-id",
    ] {
        let (status, _) = get(&mut service, &format!("/latest/meta-data/{path}"));
        assert_eq!(status, "404", "{path}");
    }
}

#[test]
fn without_a_token_every_request_is_refused() {
    let mut service = service();
    for headers in ["", "x-aws-ec2-metadata-token: forged\n"] {
        let (status, _) = ask(
            &mut service,
            &format!("GET /latest/meta-data/ami-id HTTP/1.1\n{headers}\n"),
        );
        assert_eq!(status, "401");
    }
}

#[test]
fn token_requests_follow_the_rules_of_imdsv2() {
    let mut service = service();
    for (headers, expected) in [
        ("", "400"),
        (&*format!("{TTL_HEADER}: 0\n"), "400"),
        (&*format!("{TTL_HEADER}: 21601\n"), "400"),
        (&*format!("{TTL_HEADER}: 21600\n"), "200"),
        (&*format!("{TTL_HEADER}: 60\nX-Forwarded-For: 192.0.2.1\n"), "403"),
    ] {
        assert_eq!(
            ask(
                &mut service,
                &format!("PUT /latest/api/token HTTP/1.1\n{headers}\n")
            )
            .0,
            expected,
            "{headers}"
        );
    }
    let mut bytes = format!("PUT /latest/api/token HTTP/1.1\r\n{TTL_HEADER}: 1\r\n\r\n").into_bytes();
    assert_eq!(service.take_request(&mut bytes).unwrap().hop_limit, Some(1));
}

#[test]
fn malformed_requests_are_refused() {
    let mut service = service();
    for (request, expected) in [
        ("\n\n", "400"),
        ("GET\n\n", "400"),
        ("GET x HTTP/1.1\n\n", "400"),
        ("GET / HTTP/9\n\n", "400"),
        ("GET /%f HTTP/1.1\n\n", "400"),
        ("GET /%ff HTTP/1.1\n\n", "400"),
        ("GET / HTTP/1.1\nno colon\n\n", "400"),
        ("GET / HTTP/1.1\nspace : before\n\n", "400"),
        ("GET / HTTP/1.1\na: b\n folded\n\n", "400"),
        ("DELETE / HTTP/1.1\n\n", "405"),
        ("PUT / HTTP/1.1\nContent-Length: 99999999999999999999\n\n", "413"),
        ("PUT / HTTP/1.1\nTransfer-Encoding: chunked\n\n", "413"),
    ] {
        assert_eq!(ask(&mut service, request).0, expected, "{request}");
    }
    // What another parser could take for two requests.
    let mut bare = b"GET / HTTP/1.1\n\nGET / HTTP/1.1\r\n\r\n".to_vec();
    let refused = service.take_request(&mut bare).unwrap();
    assert!(
        refused.close && refused.bytes.starts_with(b"HTTP/1.1 400 "),
        "{bare:?}"
    );
    let many = "a: b\n".repeat(HEADERS_CAP);
    for (more, expected) in [("", "401"), ("c: d\n", "400")] {
        let request = format!("GET / HTTP/1.1\n{many}{more}\n");
        assert_eq!(ask(&mut service, &request).0, expected);
    }
    let mut endless = vec![b'a'; HEAD_CAP + 1];
    assert!(service.take_request(&mut endless).unwrap().close);
    assert!(service.take_request(&mut b"GET / HT".to_vec()).is_none());
}

proptest::proptest! {
    #[test]
    fn random_bytes_cause_no_panic(
        mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..500),
        cut in 0_usize..200,
    ) {
        let mut service = service();
        let mut request = b"GET /latest/meta-data/ HTTP/1.1\r\nContent-Length: 5\r\n\r\n".to_vec();
        request.truncate(cut);
        request.append(&mut bytes);
        while service.take_request(&mut request).is_some() {}
    }
}
