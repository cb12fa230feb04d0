"""What runs this project on AWS."""
