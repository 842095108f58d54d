/* The same framing with the message's offset: on Linux 6.1 and later it lies at byte 28 of skb->cb,
 * and skb->cb at byte 40 of the skb. */
#include "bpf.h"

SEC("socket")
int thrift_framed(struct __sk_buff *skb)
{
	__u32 offset;

	if (bpf_probe_read_kernel(&offset, sizeof(offset), (void *)skb + 40 + 28))
		return 0;
	return load_word(skb, offset) + 4;
}

char _license[] SEC("license") = "Dual MIT/GPL";
