//! What reaches the EC2 API before and after the signature: headers, and the parameters of a request. Whoever
//! can connect speaks here.

use ec2::credentials::Credentials;
use ec2::filter::Filters;
use ec2::page::Page;
use ec2::query::Params;
use ec2::sigv4::Signed;

use crate::input::Input;

/// The first byte chooses what the rest is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 2 {
        0 => parameters(input.rest()),
        _ => signature(&String::from_utf8_lossy(input.rest())),
    }
}

/// A query string, and behind the first line feed a body.
fn parameters(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let query = parts.next().unwrap_or_default();
    let Ok(params) = Params::parse(query, parts.next().unwrap_or_default()) else {
        return;
    };
    for place in params.places("TagSpecification") {
        let _ = params.list(&format!("{place}.Tag"));
    }
    let _ = (
        params.list("InstanceId"),
        params.flag("Force"),
        params.number("MinCount", 1..=1000),
    );
    if let Ok(filters) = Filters::parse(&params, &["name"]) {
        filters.pass(|name| vec![name.to_owned(), "web-1".to_owned()]);
    }
    if let Ok(page) = Page::parse(&params, 5) {
        let all = (0..9).map(|number| number.to_string()).collect();
        page.take(all, String::clone);
    }
    let _ = params.finish();
    assert_eq!(params.canonical(&[]), params.canonical(&[]));
}

/// Method, path, query, and a line for each header. Nobody guesses a signature.
fn signature(text: &str) {
    let mut lines = text.lines();
    let [method, path, query] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let signed = Signed {
        method,
        path,
        query,
        headers: &headers,
        body: query.as_bytes(),
    };
    let credentials = Credentials {
        access_key: "AKIDEXAMPLE".into(),
        secret_key: "unknown to whoever made the corpus".into(),
    };
    // The time of the corpus.
    assert!(signed.verify(&credentials, 1_440_938_160).is_err());
}
