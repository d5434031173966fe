"""What is published of pods per node, to be compared with: figures only, a sample of each shape and every odd one.

``MAX_PODS``: ``nodeadm/internal/kubelet/eni-max-pods.txt`` of awslabs/amazon-eks-ami (commit 2641205), the data of
``/app/eni-max-pods.txt`` in the original's image. ``CUSTOM_NETWORKING``: the second column of
``misc/eni-max-pods.txt`` of aws/amazon-vpc-cni-k8s (commit 01d744a).
"""

from typing import Final

MAX_PODS: Final = {
    name: pods
    for pods, names in {
        4: "t1.micro t2.nano t2.micro t3.nano t3.micro t3a.nano t4g.nano",
        8: "a1.medium c6g.medium m1.small m8g.medium t3a.small",
        11: "t2.small t3.small t4g.small",
        12: "c1.medium m1.medium m3.medium",
        10: "d3.xlarge d3en.xlarge",
        17: "t2.medium t3.medium t3a.medium t4g.medium",
        18: "d3.2xlarge d3en.2xlarge",
        20: "g6f.large m4.large",
        29: "a1.large c5.large c7i-flex.large g4dn.xlarge m5.large m6i.large r5.large z1d.large",
        35: "t2.large t3.large t3a.large t4g.large",
        38: "d3.4xlarge d3en.4xlarge inf1.xlarge inf1.2xlarge",
        44: "t2.xlarge t2.2xlarge",
        51: "hpc6id.32xlarge",
        58: "c5.xlarge d3en.6xlarge g4dn.16xlarge i3.2xlarge m5.xlarge m5.2xlarge t3.xlarge t4g.2xlarge",
        59: "d3.8xlarge r8i.large r8i-flex.large",
        78: "d3en.8xlarge",
        89: "d3en.12xlarge",
        100: "hpc6a.48xlarge hpc7a.96xlarge p5.48xlarge p5e.48xlarge trn2.48xlarge",
        118: "m2.2xlarge m3.2xlarge p5.4xlarge r8i.xlarge r8i.2xlarge",
        198: "hpc7g.4xlarge hpc7g.16xlarge p5en.48xlarge p6-b200.48xlarge",
        234: "a1.metal c5.4xlarge c5.12xlarge g5.4xlarge m4.4xlarge m5.12xlarge mac1.metal x1.32xlarge",
        247: "trn1.32xlarge trn1n.32xlarge",
        292: "c8gn.8xlarge g6e.12xlarge",
        321: "inf1.24xlarge",
        345: "g5.48xlarge",
        350: "c8gn.12xlarge",
        394: "c6in.32xlarge c6in.metal h1.16xlarge i7ie.12xlarge m6idn.32xlarge r8i.4xlarge u7in-16tb.224xlarge",
        437: "i4i.24xlarge",
        492: "g6e.24xlarge g6e.48xlarge r8i.8xlarge",
        590: "c8gn.48xlarge r8i.12xlarge",
        737: "c5.18xlarge c5.metal c7g.metal dl2q.24xlarge i3.16xlarge m5.metal p3dn.24xlarge p4d.24xlarge "
        "p4de.24xlarge r4.16xlarge u7i-12tb.224xlarge",
        786: "c8gn.16xlarge",
        1010: "r8i.16xlarge r8i.24xlarge",
        1178: "c8gn.24xlarge c8gn.metal-24xl",
        1514: "r8i.32xlarge r8i.96xlarge r8i.metal-96xl",
    }.items()
    for name in names.split()
}

NOT_RECORDED: Final = {
    name: pods
    for pods, names in {
        8: "g4ad.xlarge g4ad.2xlarge",
        29: "g4ad.4xlarge",
        58: "f1.2xlarge p3.2xlarge",
        147: "u-6tb1.metal u-9tb1.metal u-12tb1.metal",
        234: "cr1.8xlarge f1.4xlarge hs1.8xlarge p3.8xlarge p3.16xlarge",
        394: "f1.16xlarge",
        737: "bmn-sf1.metal c5a.metal c5ad.metal dl1.24xlarge u-18tb1.metal",
    }.items()
    for name in names.split()
}
"""Published, mostly kept there by hand, but absent from what moto recorded of EC2: the agent asks EC2 for these."""

CUSTOM_NETWORKING: Final = {
    "t3.medium": 12,
    "m5.large": 20,
    "m5.xlarge": 44,
    "m4.large": 11,
    "m5.4xlarge": 205,
    "i4i.24xlarge": 408,
    "c6in.32xlarge": 345,
    "g6e.12xlarge": 263,
    "p5.48xlarge": 51,
    "m5.metal": 688,
    "p4d.24xlarge": 688,
    "inf1.24xlarge": 292,
    "t3.nano": 3,
}
