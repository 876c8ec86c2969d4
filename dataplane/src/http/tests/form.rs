//! Forms: where the model is named.

use crate::http::form::{FormScan, Found, is_form};

const TYPE: &[u8] = b"multipart/form-data; boundary=XX";

/// A form of boundary `XX` from heads and contents.
fn form(parts: &[(&str, &str)]) -> Vec<u8> {
    let mut body = String::new();
    for (head, content) in parts {
        body += &format!("--XX\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n");
    }
    (body + "--XX--\r\n").into_bytes()
}

fn look(content_type: &[u8], body: &[u8], step: usize) -> Found {
    let mut scan = FormScan::new(content_type).unwrap();
    let mut have = 0;
    loop {
        have = (have + step).min(body.len());
        let found = scan.look(&body[..have]);
        if found != Found::Nothing || have == body.len() {
            return found;
        }
    }
}

#[test]
fn content_types() {
    for (value, form, boundary) in [
        ("multipart/form-data; boundary=XX", true, true),
        ("Multipart/Form-Data;charset=utf-8; Boundary=\"a b\"", true, true),
        ("multipart/form-data", true, false),
        ("multipart/form-data; boundary=", true, false),
        ("multipart/form-data; boundary=\"", true, false),
        ("multipart/form-data; boundary=\"ends in a space \"", true, false),
        ("multipart/mixed; boundary=XX", false, true),
        ("application/json", false, false),
        ("", false, false),
    ] {
        assert_eq!(is_form(value.as_bytes()), form, "{value}");
        assert_eq!(FormScan::new(value.as_bytes()).is_some(), boundary, "{value}");
    }
    let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
    assert!(FormScan::new(long.as_bytes()).is_none());
}

#[test]
fn models_are_found_however_the_body_is_cut() {
    let model = |name: &str| Found::Model(name.to_owned());
    let file = ("name=\"file\"; filename=\"a.wav\"", "RIFF\r\n--X\r\n--XY\r\n\r\nname=\"model\"");
    let long_head = format!("name=\"x\"; y=\"{}\"", "z".repeat(17_000));
    let table: Vec<(Vec<u8>, Found)> = vec![
        (form(&[("name=\"model\"", "whisper")]), model("whisper")),
        (form(&[file, ("name=\"model\"", "org/whisper-1")]), model("org/whisper-1")),
        (form(&[("name=language", "de"), ("NAME=model", " m ")]), model("m")),
        (form(&[("name=\"mo\\\"del\"", "x"), ("name=\"model\"", "m")]), model("m")),
        (form(&[("name=\"model\"; filename=\"model\"", "file"), ("name=\"model\"", "m")]), model("m")),
        (form(&[("x=\"; name=model\"; name=\"y\"", "no"), ("name=\"model\"", "m")]), model("m")),
        (form(&[("name=\"model\"", "m"), ("name=\"model\"", "second")]), model("m")),
        (form(&[("name=\"model\"", "")]), model("")),
        (form(&[("name=\"model\"", "a\r\nb")]), model("a\r\nb")),
        ([b"preamble\r\n".to_vec(), form(&[("name=\"model\"", "m")])].concat(), model("m")),
        (b"--XX \t\r\nContent-Type: text/plain\r\ncontent-disposition:form-data;name=model\r\n\r\nm\r\n--XX".to_vec(), model("m")),
        // A part without a head, and one without content.
        (b"--XX\r\n\r\nx\r\n--XX\r\nA: b\r\n\r\n--XX\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--XX--".to_vec(), model("m")),
        (form(&[file]), Found::End),
        (form(&[]), Found::End),
        (b"".to_vec(), Found::Nothing),
        (b"--X".to_vec(), Found::Nothing),
        (b"{\"model\":\"m\"}".to_vec(), Found::Nothing),
        (form(&[("name=\"model\"", "m")])[..40].to_vec(), Found::Nothing),
        (b"--XXY\r\n".to_vec(), Found::Bad("a form's border is followed by something else")),
        (form(&[(&long_head, "x")]), Found::Bad("the head of a form's part is too long")),
        (form(&[("name=\"model\"", &"m".repeat(3000))]), Found::Bad("the form's `model` is too long")),
    ];
    for (body, want) in table {
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        for step in [1, 2, 3, 7, 64, body.len().max(1)] {
            assert_eq!(look(TYPE, &body, step), want, "{step} bytes at a time: {shown:?}");
        }
    }
    let raw = [&b"--XX\r\nContent-Disposition: form-data; name=model\r\n\r\n"[..], b"\xff\r\n--XX"].concat();
    assert_eq!(look(TYPE, &raw, 1), Found::Bad("the form's `model` is not UTF-8"));
}

#[test]
fn a_large_file_is_passed_over_once() {
    let content = "\r\n--X".repeat(500_000);
    let body = form(&[("name=\"file\"; filename=\"x\"", &content), ("name=\"model\"", "m")]);
    assert_eq!(look(TYPE, &body, 16 * 1024), Found::Model("m".to_owned()));
}
