"""What needs somebody else's package: timm, torchvision, MONAI, IPEX, oneCCL.

`ttransfer` never imports this package; it imports `ttransfer`, and each of its parts the package it is named after.
"""
