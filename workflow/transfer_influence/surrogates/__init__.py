"""What cheap methods say of the source classes, held against what retraining says."""
