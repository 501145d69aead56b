// SPDX-License-Identifier: GPL-2.0-only
/*
 * Three of the policies as somebody would write them without Syrup: programs of
 * a reuseport group, with nothing around them. What Syrup costs is measured
 * against these, so they choose as the policies do (see net-hooks/policies) and
 * are as short as they can be.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum { IDLE, GET, SCAN, TRIES = 8, UDP_HEADER = 8, MOST_SOCKETS = 64 };

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, MOST_SOCKETS);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

/* What the thread of each socket serves; the server has it in its memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MOST_SOCKETS);
	__type(key, __u32);
	__type(value, __u64);
} request_type SEC(".maps");

const volatile __u32 nr_sockets = 1;
static __u32 next, gets;

static __always_inline int select_socket(struct sk_reuseport_md *md, __u32 index)
{
	/* Where it fails the kernel's hash chooses. */
	bpf_sk_select_reuseport(md, &sockets, &index, 0);
	return SK_PASS;
}

static __always_inline __u64 type_of(struct sk_reuseport_md *md)
{
	void *payload = md->data + UDP_HEADER;

	return payload + sizeof(__u64) <= md->data_end ? *(__u64 *)payload : GET;
}

SEC("sk_reuseport")
int round_robin(struct sk_reuseport_md *md)
{
	return select_socket(md, __sync_fetch_and_add(&next, 1) % nr_sockets);
}

SEC("sk_reuseport")
int scan_avoid(struct sk_reuseport_md *md)
{
	__u32 n = nr_sockets, candidate = bpf_get_prandom_u32(), index = 0;
	__u64 type = type_of(md), seen, *label;

	for (__u32 i = 0; i < TRIES + n && i < TRIES + MOST_SOCKETS; i++) {
		index = candidate % n;
		label = bpf_map_lookup_elem(&request_type, &index);
		if (!label)
			return SK_PASS;
		seen = *label;
		if (seen != SCAN &&
		    __sync_bool_compare_and_swap(label, seen, type == SCAN ? SCAN : GET))
			break;
		candidate = i < TRIES - 1 ? bpf_get_prandom_u32() : candidate + 1;
	}
	return select_socket(md, index);
}

SEC("sk_reuseport")
int sita(struct sk_reuseport_md *md)
{
	__u32 n = nr_sockets;

	if (n < 2)
		return SK_PASS;
	if (type_of(md) == SCAN)
		return select_socket(md, 0);
	return select_socket(md, 1 + __sync_fetch_and_add(&gets, 1) % (n - 1));
}

char _license[] SEC("license") = "GPL";
