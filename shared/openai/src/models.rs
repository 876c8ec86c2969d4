//! The list of models.

use crate::error::string;

/// One model of the fleet.
#[derive(Clone, Copy, Debug)]
pub struct ModelCard<'a> {
    /// The name that requests use.
    pub id: &'a str,
    /// Who serves it.
    pub owned_by: &'a str,
    /// Tokens of prompt and answer together, where the engines tell.
    pub max_model_len: Option<u64>,
}

impl<'a> ModelCard<'a> {
    /// A model known by its name only.
    pub fn new(id: &'a str) -> Self {
        Self { id, owned_by: "fairlead", max_model_len: None }
    }
}

fn card(out: &mut Vec<u8>, model: &ModelCard<'_>, created: u64) {
    out.extend_from_slice(b"{\"id\":");
    string(out, model.id);
    out.extend_from_slice(b",\"object\":\"model\",\"created\":");
    out.extend_from_slice(created.to_string().as_bytes());
    out.extend_from_slice(b",\"owned_by\":");
    string(out, model.owned_by);
    if let Some(length) = model.max_model_len {
        out.extend_from_slice(b",\"max_model_len\":");
        out.extend_from_slice(length.to_string().as_bytes());
    }
    out.push(b'}');
}

/// The answer to `GET /v1/models`. `created` is in seconds since 1970.
pub fn models_body<'a>(models: impl IntoIterator<Item = ModelCard<'a>>, created: u64) -> Vec<u8> {
    let mut out = b"{\"object\":\"list\",\"data\":[".to_vec();
    for (index, model) in models.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        card(&mut out, &model, created);
    }
    out.extend_from_slice(b"]}");
    out
}

/// The answer to `GET /v1/models/<id>`.
pub fn model_body(model: &ModelCard<'_>, created: u64) -> Vec<u8> {
    let mut out = Vec::new();
    card(&mut out, model, created);
    out
}
