//! Body members that steer an engine: they name peers, ranks or transfers, and belong to the router, never to a
//! client. An engine believes them, so a request that carries one could make an engine send KV blocks or a prompt to
//! an address of the client's choice.

/// Members that steer vLLM, SGLang or TensorRT-LLM.
const STEERING: &[&str] = &[
    "kv_transfer_params",
    "ec_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "bootstrap_pair_key",
    "routed_dp_rank",
    "data_parallel_rank",
    "data_parallel_rank_decode",
    "disagg_prefill_dp_rank",
    "disagg_request_id",
    "disaggregated_params",
];

/// Members whose own members an engine takes over as if they stood one level higher.
const CONTAINERS: &[&str] = &["vllm_xargs", "extra_args", "sampling_params"];

/// The steering member of that name.
pub(crate) fn member(name: &[u8]) -> Option<&'static str> {
    STEERING.iter().find(|known| known.as_bytes() == name).copied()
}

/// Whether a member of that name may hold steering members.
pub(crate) fn container(name: &[u8]) -> bool {
    CONTAINERS.iter().any(|known| known.as_bytes() == name)
}
