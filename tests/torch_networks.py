"""The published networks, re-made in torch with the names of their libraries.

After torchvision 0.29 (`mobilenet_v2`), timm 1.0 (`mobilenetv2_100`) and MMSegmentation 1.2.2
(`MobileNetV2`, `ASPPHead`), which need not be installed. All weights and statistics are random.
"""

import collections

import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

# expansion, channels, layers, stride of a classifier, stride and dilation of M-V2-D8
GROUPS = (
    (1, 16, 1, 1, 1, 1),
    (6, 24, 2, 2, 2, 1),
    (6, 32, 3, 2, 2, 1),
    (6, 64, 4, 2, 1, 2),
    (6, 96, 3, 1, 1, 2),
    (6, 160, 3, 2, 1, 4),
    (6, 320, 1, 1, 1, 4),
)


def scaled(channels, width):
    """`make_divisible` of all three libraries."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


def convolution(inputs, outputs, kernel=1, stride=1, dilation=1, groups=1):
    pad = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, pad, dilation, groups, bias=False)


def with_norm(*shape):
    """torchvision's `Conv2dNormActivation`."""
    conv = convolution(*shape)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())


class TorchvisionLayer(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        hidden = inputs * expansion
        parts = [with_norm(inputs, hidden)] if expansion > 1 else []
        parts += [with_norm(hidden, hidden, 3, stride, 1, hidden)]
        parts += [convolution(hidden, outputs), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*parts)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class Torchvision(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        inputs = scaled(32, width)
        features = [with_norm(3, inputs, 3, 2)]
        for expansion, channels, layers, stride, *_ in GROUPS:
            for layer in range(layers):
                outputs = scaled(channels, width)
                how = (stride if layer == 0 else 1, expansion)
                features.append(TorchvisionLayer(inputs, outputs, *how))
                inputs = outputs
        last = scaled(1280, max(1.0, width))
        features.append(with_norm(inputs, last))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class TimmFirst(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv_dw, self.bn1 = convolution(inputs, inputs, 3, groups=inputs), norm(inputs)
        self.conv_pw, self.bn2 = convolution(inputs, outputs), norm(outputs)

    def forward(self, x):
        return self.bn2(self.conv_pw(functional.relu6(self.bn1(self.conv_dw(x)))))


class TimmLayer(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        hidden = 6 * inputs
        self.conv_pw, self.bn1 = convolution(inputs, hidden), norm(hidden)
        self.conv_dw, self.bn2 = convolution(hidden, hidden, 3, stride, 1, hidden), norm(hidden)
        self.conv_pwl, self.bn3 = convolution(hidden, outputs), norm(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        y = functional.relu6(self.bn1(self.conv_pw(x)))
        y = functional.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.adds else y


norm = nn.BatchNorm2d


class Timm(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        inputs = scaled(32, width)
        self.conv_stem, self.bn1 = convolution(3, inputs, 3, 2), norm(inputs)
        groups = []
        for expansion, channels, layers, stride, *_ in GROUPS:
            group, outputs = [], scaled(channels, width)
            for layer in range(layers):
                one = (inputs, outputs)
                last_stride = stride if layer == 0 else 1
                group.append(TimmFirst(*one) if expansion == 1 else TimmLayer(*one, last_stride))
                inputs = outputs
            groups.append(nn.Sequential(*group))
        self.blocks = nn.Sequential(*groups)
        last = scaled(1280, max(1.0, width))
        self.conv_head, self.bn2 = convolution(inputs, last), norm(last)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x):
        x = self.blocks(functional.relu6(self.bn1(self.conv_stem(x))))
        return self.classifier(functional.relu6(self.bn2(self.conv_head(x))).mean((2, 3)))


class ConvModule(nn.Module):
    """mmcv's."""

    def __init__(self, *shape, act=None):
        super().__init__()
        self.conv = convolution(*shape)
        self.bn, self.act = norm(self.conv.out_channels), act or nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class MmsegLayer(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion, dilation):
        super().__init__()
        hidden, act = inputs * expansion, nn.ReLU6()
        parts = [ConvModule(inputs, hidden, act=act)] if expansion > 1 else []
        parts += [ConvModule(hidden, hidden, 3, stride, dilation, hidden, act=act)]
        self.conv = nn.Sequential(*parts, ConvModule(hidden, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class MmsegBackbone(nn.Module):
    def __init__(self, width):
        super().__init__()
        inputs = scaled(32, width)
        self.conv1 = ConvModule(3, inputs, 3, 2, act=nn.ReLU6())
        for number, (expansion, channels, layers, _, stride, dilation) in enumerate(GROUPS):
            group, outputs = [], scaled(channels, width)
            for i in range(layers):
                how = (stride, expansion, dilation) if i == 0 else (1, expansion, 1)
                group.append(MmsegLayer(inputs, outputs, *how))
                inputs = outputs
            self.add_module(f"layer{number + 1}", nn.Sequential(*group))
        self.channels = inputs

    def forward(self, x):
        x = self.conv1(x)
        for number in range(len(GROUPS)):
            x = getattr(self, f"layer{number + 1}")(x)
        return x


class MmsegHead(nn.Module):
    """mmseg's `ASPPHead`."""

    def __init__(self, inputs, channels, rates, classes):
        super().__init__()
        act = nn.ReLU()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        pool = ConvModule(inputs, channels, act=act)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), pool)
        branches = [ConvModule(inputs, channels, act=act)]
        branches += [ConvModule(inputs, channels, 3, 1, rate, act=act) for rate in rates]
        self.aspp_modules = nn.ModuleList(branches)
        self.bottleneck = ConvModule((len(rates) + 2) * channels, channels, 3, act=act)

    def forward(self, x):
        pooled = functional.interpolate(
            self.image_pool(x), x.shape[2:], mode="bilinear", align_corners=False
        )
        branches = [pooled, *(branch(x) for branch in self.aspp_modules)]
        return self.conv_seg(self.bottleneck(torch.cat(branches, 1)))


class Mmseg(nn.Module):
    def __init__(self, classes, width, channels, rates):
        super().__init__()
        self.backbone = MmsegBackbone(width)
        self.decode_head = MmsegHead(self.backbone.channels, channels, rates, classes)
        self.auxiliary_head = nn.Module()
        self.auxiliary_head.conv_seg = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return self.decode_head(self.backbone(x))


def calibrated(model, size=(64, 96), seed=0):
    """Random scales, and statistics from smooth random images, so that no layer is dead."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, norm)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                last = name.startswith("classifier") or "conv_seg" in name  # logits of 4 or so
                variance = (0.2 if last else 2) / parameter[0].numel()
                parameter.normal_(0, variance**0.5, generator=generator)
        for one in norms:
            one.momentum = None  # the plain mean over batches
            one.reset_running_stats()
            one.weight.uniform_(0.8, 1.4, generator=generator)
            one.bias.normal_(0, 0.2, generator=generator)
        model.train()
        for _ in range(2):
            small = torch.randn(2, 3, size[0] // 8, size[1] // 8, generator=generator)
            model(functional.interpolate(small, size, mode="bilinear"))
    return model.eval()


def logits(model, images):
    """Of bytes [n, h, w, 3], normalized as the libraries do; channels last, [n, 1, 1, classes]
    of a classifier."""
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    pixels = (torch.from_numpy(images).float() - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        found = model(pixels.permute(0, 3, 1, 2).contiguous())
    return (found if found.ndim == 4 else found[:, :, None, None]).permute(0, 2, 3, 1).numpy()


def state(model):
    """Its tensors by name."""
    return collections.OrderedDict(model.state_dict())
