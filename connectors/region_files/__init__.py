"""Regions in the files of other tools: COCO, YOLO, Pascal VOC and masks as PNG, read and written."""
