//! Questions to the bootstrap server of a prefill instance, which has a port of its own.

use crate::http::{Client, HttpError, Limits, Origin};
use fairlead_wire::limits;
use serde_json::Value;

/// Asks SGLang's bootstrap server for the whole instance instead of one rank: 503 until all ranks have registered. The
/// names after the first four are those of older versions, which refuse a request without them.
const ROUTE: &str = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1\
                     &engine_rank=-1&target_dp_group=-1";

/// Why a bootstrap server cannot be used yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoBootstrap {
    #[error("bootstrap server {address}: {why}")]
    Http { address: String, why: HttpError },
    #[error("bootstrap server {address}: GET {path}: status {status}")]
    Status { address: String, path: &'static str, status: u16 },
    #[error("bootstrap server {address}: {why}")]
    Answer { address: String, why: String },
}

async fn ask(address: &str, path: &str, name: &'static str, limits: Limits) -> Result<Vec<u8>, NoBootstrap> {
    let failed = |why| NoBootstrap::Http { address: address.to_owned(), why };
    let origin = Origin::parse(&format!("http://{address}"))
        .map_err(|why| NoBootstrap::Answer { address: address.to_owned(), why })?;
    match Client::new(origin).get_body(path, limits).await.map_err(failed)? {
        (200, body) => Ok(body),
        (status, _) => Err(NoBootstrap::Status { address: address.to_owned(), path: name, status }),
    }
}

/// Whether all ranks of an SGLang instance have registered.
pub(crate) async fn route(address: &str, limits: Limits) -> Result<(), NoBootstrap> {
    ask(address, ROUTE, "/route", limits).await.map(drop)
}

/// Mooncake's names of the ranks of a vLLM instance, which change with every start.
pub(crate) async fn engine_ids(
    address: &str,
    ranks: u16,
    limits: Limits,
) -> Result<Vec<String>, NoBootstrap> {
    let body = ask(address, "/query", "/query", limits).await?;
    read_ids(&body, ranks).map_err(|why| NoBootstrap::Answer { address: address.to_owned(), why })
}

/// Reads `{"<rank>": {"engine_id": "...", ...}}`: the names of rank 0 and those that follow without a gap.
fn read_ids(body: &[u8], ranks: u16) -> Result<Vec<String>, String> {
    let said: Value = serde_json::from_slice(body).map_err(|e| format!("GET /query: {e}"))?;
    let fits = |id: &&str| (1..=limits::MAX_NAME).contains(&id.len()) && !id.contains(char::is_control);
    let id =
        |rank: u16| said.get(rank.to_string())?.get("engine_id")?.as_str().filter(fits).map(str::to_owned);
    let ids: Vec<_> = (0..limits::MAX_RANKS).map_while(id).collect();
    if ids.len() < usize::from(ranks) {
        return Err(format!("{} of {ranks} ranks have registered", ids.len()));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::read_ids;

    #[test]
    fn names_are_read_by_rank() {
        let both = br#"{"1":{"engine_id":"b"},"0":{"engine_id":"a","worker_addr":{"0":{"0":"x"}}}}"#;
        assert_eq!(read_ids(both, 2), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(read_ids(both, 1).map(|ids| ids.len()), Ok(2));
        for (body, says) in [
            (&br#"{"1":{"engine_id":"b"}}"#[..], "0 of 2"),
            (br#"{"0":{"engine_id":"a"},"1":{"engine_id":7}}"#, "1 of 2"),
            (br#"{"0":{"engine_id":""}}"#, "0 of 2"),
            (b"{}", "0 of 2"),
            (b"[]", "0 of 2"),
            (b"<html>", "/query"),
        ] {
            let error = read_ids(body, 2).expect_err("refused");
            assert!(error.contains(says), "{error}");
        }
    }
}
