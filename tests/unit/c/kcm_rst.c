/* The program of the kernel's own Documentation/networking/kcm.rst: it measures the first message
 * of a segment again and again. */
#include "bpf.h"

SEC("socket_kcm")
int bpf_prog1(struct __sk_buff *skb)
{
	return load_word(skb, 0) + 4;
}

char _license[] SEC("license") = "GPL";
