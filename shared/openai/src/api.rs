//! Which API a path belongs to.

/// The shape of an API's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorStyle {
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}, "request_id"}`
    Anthropic,
}

/// The API that a request speaks, recognised by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// Anthropic's `/v1/messages`
    Messages,
    /// Anthropic's `/v1/messages/count_tokens`
    CountTokens,
    /// `/v1/rerank`, `/v2/rerank` and `/rerank`
    Rerank,
    /// `/v1/score` and `/score`
    Score,
    /// `/tokenize` and `/v1/tokenize`
    Tokenize,
    /// `/detokenize` and `/v1/detokenize`
    Detokenize,
    /// Any other route under `/v1/`, forwarded by its model name.
    Other,
}

impl Api {
    /// The API of a path, given without the configured base path; a query is ignored. `None` for what is not
    /// forwarded by model name: the list of models, health checks and everything outside `/v1/` that is not named
    /// above.
    pub fn from_path(path: &str) -> Option<Api> {
        let path = path.split('?').next().unwrap_or_default();
        Some(match path {
            "/v1/chat/completions" => Api::Chat,
            "/v1/completions" => Api::Completions,
            "/v1/embeddings" => Api::Embeddings,
            "/v1/responses" => Api::Responses,
            "/v1/messages" => Api::Messages,
            "/v1/messages/count_tokens" => Api::CountTokens,
            "/v1/rerank" | "/v2/rerank" | "/rerank" => Api::Rerank,
            "/v1/score" | "/score" => Api::Score,
            "/tokenize" | "/v1/tokenize" => Api::Tokenize,
            "/detokenize" | "/v1/detokenize" => Api::Detokenize,
            "/v1/models" => return None,
            _ => {
                let rest = path.strip_prefix("/v1/")?;
                if rest.is_empty() || rest.starts_with("models/") {
                    return None;
                }
                Api::Other
            }
        })
    }

    /// The shape in which this API's clients expect errors.
    pub fn error_style(self) -> ErrorStyle {
        match self {
            Api::Messages | Api::CountTokens => ErrorStyle::Anthropic,
            _ => ErrorStyle::OpenAi,
        }
    }

    /// A short fixed name, for logs and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Api::Chat => "chat",
            Api::Completions => "completions",
            Api::Embeddings => "embeddings",
            Api::Responses => "responses",
            Api::Messages => "messages",
            Api::CountTokens => "count_tokens",
            Api::Rerank => "rerank",
            Api::Score => "score",
            Api::Tokenize => "tokenize",
            Api::Detokenize => "detokenize",
            Api::Other => "other",
        }
    }

    /// Whether the engine generates text for it, so that it has a decode phase and may be streamed.
    pub fn generates(self) -> bool {
        matches!(self, Api::Chat | Api::Completions | Api::Responses | Api::Messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_api() {
        let table = [
            ("/v1/chat/completions", Some(Api::Chat)),
            ("/v1/chat/completions?a=b", Some(Api::Chat)),
            ("/v1/completions", Some(Api::Completions)),
            ("/v1/embeddings", Some(Api::Embeddings)),
            ("/v1/responses", Some(Api::Responses)),
            ("/v1/messages", Some(Api::Messages)),
            ("/v1/messages/count_tokens", Some(Api::CountTokens)),
            ("/v1/rerank", Some(Api::Rerank)),
            ("/rerank", Some(Api::Rerank)),
            ("/v1/score", Some(Api::Score)),
            ("/tokenize", Some(Api::Tokenize)),
            ("/detokenize", Some(Api::Detokenize)),
            ("/v1/classify", Some(Api::Other)),
            ("/v1/responses/abc", Some(Api::Other)),
            ("/v1/models", None),
            ("/v1/models/a/b", None),
            ("/v1/", None),
            ("/v1", None),
            ("/chat/completions", None),
            ("/healthz", None),
            ("", None),
        ];
        for (path, api) in table {
            assert_eq!(Api::from_path(path), api, "{path}");
        }
    }

    #[test]
    fn only_anthropic_paths_have_anthropic_errors() {
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            assert_eq!(Api::from_path(path).map(Api::error_style), Some(ErrorStyle::Anthropic));
        }
        for path in ["/v1/chat/completions", "/v1/responses", "/tokenize", "/v1/other"] {
            assert_eq!(Api::from_path(path).map(Api::error_style), Some(ErrorStyle::OpenAi));
        }
    }
}
