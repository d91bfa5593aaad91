"""Behind the faces: a call of one made ready, carried out beside Prefect's thread, remembered, withdrawn."""
